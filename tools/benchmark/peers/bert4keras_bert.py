"""bert4keras on the Keras 2 that TensorFlow can still use, with logits at all positions, as its pretraining does."""

import importlib.util
import os
import sys

import protocol


def _load():
    """Imports bert4keras, with the two changes that versions of TensorFlow since its last release ask for."""
    os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_KERAS": "1"}
    for package in ("bert4keras", "tf_keras"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"No module named {package!r}")
    import tensorflow as tf

    keras = tf.keras
    optimizers = sys.modules[keras.optimizers.__name__]
    # Its optimizers derive from the class that has moved to `legacy`.
    legacy = getattr(keras.optimizers, "legacy", None)
    if legacy is not None:
        optimizers.Optimizer = legacy.Optimizer
    # Its `import keras` must find the same Keras.
    sys.modules["keras"] = keras
    sys.modules["keras.backend"] = keras.backend
    import bert4keras
    from bert4keras import models
    from bert4keras import optimizers as derived

    return tf, keras, bert4keras, models, derived


def prepare(settings):
    """See `protocol.serve`."""
    tf, keras, bert4keras, models, derived = _load()
    import numpy

    model = models.build_transformer_model(
        model=models.BERT,
        with_mlm="linear",
        vocab_size=settings["vocabulary_size"],
        num_hidden_layers=settings["num_layers"],
        hidden_size=settings["hidden_size"],
        num_attention_heads=settings["num_heads"],
        intermediate_size=settings["feed_forward_size"],
        max_position=settings["max_length"],
        hidden_act="gelu",
        dropout_rate=settings["dropout"],
        attention_dropout_rate=settings["dropout"],
    )

    def loss(labels, logits):
        labels = tf.cast(labels, tf.int32)
        weights = tf.cast(labels > 0, tf.float32)
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return tf.reduce_sum(losses * weights) / (tf.reduce_sum(weights) + keras.backend.epsilon())

    optimizer_class = derived.extend_with_weight_decay(derived.Adam, "AdamW")
    optimizer = optimizer_class(
        learning_rate=settings["learning_rate"], weight_decay_rate=0.01, exclude_from_weight_decay=["Norm", "bias"]
    )
    model.compile(loss=loss, optimizer=optimizer)
    token_ids, positions, masked = protocol.synthetic_batch(settings)
    labels = numpy.zeros(token_ids.shape, "int32")  # 0: no loss here
    numpy.put_along_axis(labels, positions, masked, axis=1)
    inputs = [tf.constant(token_ids), tf.zeros(token_ids.shape, tf.int32)]
    labels = tf.constant(labels)

    def step():
        return float(model.train_on_batch(inputs, labels))

    versions = f"bert4keras {bert4keras.__version__}, tensorflow {tf.__version__}"
    return {"versions": versions}, {"run": protocol.timed_steps(step)}


if __name__ == "__main__":
    protocol.serve(prepare)
