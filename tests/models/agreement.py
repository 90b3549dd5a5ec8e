"""What it means that a model of ours and one of another library are the same: their outputs, and all gradients."""

import numpy as np
import tensorflow as tf

from trainer.models.encoder_with_heads import EncoderWithHeads
from trainer.weights import hugging_face


class Tensors:
    """Tensors of another library's model by name, as `Entry.read` wants them; remembers which were asked for."""

    def __init__(self, arrays):
        self.arrays, self.asked = arrays, set()

    def read(self, name):
        """Returns the NumPy array with a name."""
        self.asked.add(name)
        return self.arrays[name]


def entries_of(json_config, heads):
    """Returns our `{name: Entry}` for a model with a `config.json`, a dict, and heads."""
    entries = hugging_face.scheme_of(json_config).entries(
        hugging_face.encoder_config(json_config), classifies="classifier" in heads
    )
    return {entry.name: entry for entry in entries}


def our_name(variable):
    """Returns the name of a variable as an `Entry` has it: without that of the model."""
    return variable.path.partition("/")[2]


def model_with_weights(json_config, arrays, heads=(), labels=()):
    """Returns our model with their weights.

    Args:
        json_config: content of `config.json`, a dict.
        arrays: `{name: array}` of the other library's tensors.
        heads, labels: see `EncoderWithHeads`.

    Returns:
        the model, all of whose weights have values of theirs, and the names of the tensors it took.
    """
    model = EncoderWithHeads(
        hugging_face.encoder_config(json_config), json_config["vocab_size"], heads=heads, labels=labels
    )
    model.build()
    entries, tensors = entries_of(json_config, heads), Tensors(arrays)
    for variable in model.trainable_variables:
        entry = entries[our_name(variable)]
        variable.assign(padded(entry, entry.read(tensors), variable.shape))
    return model, tensors.asked


def padded(entry, array, shape):
    """Returns an array of theirs with zero rows up to our number of tokens."""
    missing = shape[0] - array.shape[0] if entry.rows == "tokens" else 0
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))


def outputs_and_gradients(model, inputs, seen):
    """Runs our model.

    Args:
        model: see `model_with_weights`.
        inputs: of the model.
        seen: `{name of an output: array of its shape}`; the loss is the sum of outputs times these.

    Returns:
        dict of outputs as NumPy arrays, and `{our name: gradient of the loss}`, dense.
    """
    with tf.GradientTape() as tape:
        outputs = model(inputs)
        loss = sum(tf.reduce_sum(outputs[name] * weights) for name, weights in seen.items())
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    dense = {our_name(v): tf.convert_to_tensor(g).numpy() for v, g in zip(variables, gradients, strict=True)}
    return {name: output.numpy() for name, output in outputs.items()}, dense


def expect_equal_gradients(json_config, heads, ours, theirs, tolerance=1e-4):
    """Compares gradients, to a tolerance times the largest number of each tensor's gradient.

    Args:
        json_config, heads: as in `model_with_weights`.
        ours: `{our name: gradient}`.
        theirs: `{their name: gradient}`, with all that a tied tensor gets.
        tolerance: relative.
    """
    entries, tensors = entries_of(json_config, heads), Tensors(theirs)
    for name, gradient in ours.items():
        expected = padded(entries[name], entries[name].read(tensors), gradient.shape)
        scale = np.abs(expected).max()
        assert scale > 0, name
        np.testing.assert_allclose(gradient / scale, expected / scale, atol=tolerance, err_msg=name)
