"""TensorFlow Model Garden: its masked-language-model task's training step, with logits at the masked positions."""

import os

import protocol


def prepare(settings):
    """See `protocol.serve`."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    from official.modeling.optimization import legacy_adamw
    from official.nlp.configs import bert, encoders
    from official.nlp.data import pretrain_dataloader
    from official.nlp.tasks import masked_lm

    encoder = encoders.BertEncoderConfig(
        vocab_size=settings["vocabulary_size"],
        num_layers=settings["num_layers"],
        hidden_size=settings["hidden_size"],
        num_attention_heads=settings["num_heads"],
        intermediate_size=settings["feed_forward_size"],
        max_position_embeddings=settings["max_length"],
        dropout_rate=settings["dropout"],
        attention_dropout_rate=settings["dropout"],
    )
    config = masked_lm.MaskedLMConfig(
        model=bert.PretrainerConfig(encoder=encoders.EncoderConfig(type="bert", bert=encoder), mlm_activation="gelu"),
        train_data=pretrain_dataloader.BertPretrainDataConfig(use_next_sentence_label=False),
    )
    task = masked_lm.MaskedLMTask(config)
    model = task.build_model()
    optimizer = legacy_adamw.AdamWeightDecay(
        learning_rate=settings["learning_rate"],
        weight_decay_rate=0.01,
        exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"],
        gradient_clip_norm=1.0,
    )
    token_ids, positions, labels = protocol.synthetic_batch(settings)
    inputs = {
        "input_word_ids": tf.constant(token_ids),
        "input_mask": tf.ones(token_ids.shape, tf.int32),
        "input_type_ids": tf.zeros(token_ids.shape, tf.int32),
        "masked_lm_positions": tf.constant(positions),
        "masked_lm_ids": tf.constant(labels),
        "masked_lm_weights": tf.ones(labels.shape),
    }
    metrics = task.build_metrics()

    @tf.function  # XLA makes this one slower on a CPU
    def train_step():
        return task.train_step(inputs, model, optimizer, metrics)["loss"]

    def step():
        return float(train_step())

    return {"versions": f"{_version()}, tensorflow {tf.__version__}"}, {"run": protocol.timed_steps(step)}


def _version():
    from importlib import metadata

    for name in ("tf-models-official", "tf-models-nightly"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "Model Garden"


if __name__ == "__main__":
    protocol.serve(prepare)
