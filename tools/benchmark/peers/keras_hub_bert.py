"""KerasHub on TensorFlow: `BertMaskedLM` compiled by XLA, with logits at the masked positions."""

import os

import protocol


def prepare(settings):
    """See `protocol.serve`."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import keras_hub
    import tensorflow as tf

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=settings["vocabulary_size"],
        num_layers=settings["num_layers"],
        num_heads=settings["num_heads"],
        hidden_dim=settings["hidden_size"],
        intermediate_dim=settings["feed_forward_size"],
        dropout=settings["dropout"],
        max_sequence_length=settings["max_length"],
    )
    model = keras_hub.models.BertMaskedLM(backbone=backbone, preprocessor=None)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.AdamW(settings["learning_rate"], weight_decay=0.01, global_clipnorm=1.0),
        jit_compile=True,
    )
    token_ids, positions, labels = protocol.synthetic_batch(settings)
    inputs = {
        "token_ids": tf.constant(token_ids),
        "segment_ids": tf.zeros(token_ids.shape, tf.int32),
        "padding_mask": tf.ones(token_ids.shape, tf.int32),
        "mask_positions": tf.constant(positions),
    }
    labels, weights = tf.constant(labels), tf.ones(labels.shape)

    def step():
        return float(model.train_on_batch(inputs, labels, sample_weight=weights)[0])

    versions = f"keras-hub {keras_hub.__version__}, keras {keras.__version__}, tensorflow {tf.__version__}"
    return {"versions": versions}, {"run": protocol.timed_steps(step)}


if __name__ == "__main__":
    protocol.serve(prepare)
