"""What a model costs: floating-point operations and activation memory, by formula.

A matrix product of [m, k] with [k, n] counts 2 m k n operations. The backward pass costs twice the forward pass, and
rematerialisation adds one more forward pass of the layers. Element-wise work is left out, as is customary for model FLOPs.
Only what is really done is counted: the last layer works at the predicted positions alone, but for its keys and values.
"""

from trainer.models.encoder import padded_vocabulary_size


def forward_flops(config, *, length, predictions, vocabulary_size):
    """Returns the operations of one row's forward pass, as `(encoder, heads)`.

    Args:
        config: `EncoderConfig`.
        length: tokens in the row.
        predictions: positions at which tokens are predicted.
        vocabulary_size: number of token ids.
    """
    hidden, width = config.hidden_size, config.feed_forward_size

    def layer(queries):
        keys_and_values = 2 * length * 2 * hidden * hidden
        attention = 2 * queries * 2 * length * hidden
        return keys_and_values + attention + 2 * queries * (2 * hidden * hidden + 2 * hidden * width)

    layers = (config.num_layers - 1) * layer(length) + layer(predictions)
    head = 2 * predictions * (hidden * hidden + hidden * padded_vocabulary_size(vocabulary_size))
    return layers, head


def training_flops(config, **row):
    """Returns the operations of one row's training step; arguments as in `forward_flops`."""
    encoder, head = forward_flops(config, **row)
    return (4 if config.rematerialize else 3) * encoder + 3 * head


def activation_bytes(config, *, length, predictions, vocabulary_size, compute_bytes):
    """Returns an estimate of the memory of one row's activations in training, in bytes.

    Per layer and token about 17 hidden-sized values are kept (the input, the joint projection, attention's answer, the
    two sums and normalisations, masks), three of the feed-forward width, and for each head three rows of `length`
    attention values in float32; in the last layer only the input, keys and values of tokens at which nothing is
    predicted. With rematerialisation one layer is alive at a time and the others keep their input.

    Args:
        config, length, predictions, vocabulary_size: as in `forward_flops`.
        compute_bytes: bytes of a number in the compute dtype.
    """
    hidden, width = config.hidden_size, config.feed_forward_size

    def layer(queries):
        values = length * 3 * hidden + queries * (14 * hidden + 3 * width)
        return values * compute_bytes + 3 * 4 * config.num_heads * queries * length

    layers = (config.num_layers - 1) * layer(length) + layer(predictions)
    if config.rematerialize:
        layers = config.num_layers * length * hidden * compute_bytes + layer(length)
    head = 3 * predictions * padded_vocabulary_size(vocabulary_size) * 4
    return layers + head
