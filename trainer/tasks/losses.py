"""Losses and marks of single predictions, in `keras.ops`."""

from keras import ops


def cross_entropy(logits, labels):
    """Returns the negative log-probability of integer labels `[...]` under float32 logits `[..., classes]`."""
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def correct(logits, labels):
    """Returns 1.0 where no logit is greater than the label's, else 0.0; shapes as in `cross_entropy`.

    Labels that share the greatest logit with others count, which happens where logits were rounded to 16 bits.
    """
    rows = ops.reshape(logits, (-1, logits.shape[-1]))  # as in the loss, so that both share the maximum
    labelled = ops.take_along_axis(rows, ops.reshape(labels, (-1, 1)), axis=1)
    right = ops.cast(labelled >= ops.max(rows, axis=1, keepdims=True), "float32")
    return ops.reshape(right, ops.shape(labels))
