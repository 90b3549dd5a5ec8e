"""What a model costs: floating-point operations and activation memory, by formula.

A matrix product of [m, k] with [k, n] counts 2 m k n operations. The backward pass costs twice the forward pass, and
rematerialisation adds one more forward pass of the layers. Element-wise work is left out, as is customary for model FLOPs.
Only what is really done is counted: the last layer works at the predicted positions alone, but for its keys and values;
shared layers cost what others do; a local layer computes all logits and then masks. What a condition costs is left out.
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
    hidden, width, token_size = config.hidden_size, config.feed_forward_size, config.token_size
    # Logits and mixed values; vectors of distances have as many products again with queries and probabilities.
    products = 4 if config.positions == "relative" else 2
    projections = 3 if config.gated else 2  # of the feed-forward part

    def layer(queries):
        keys_and_values = 2 * length * 2 * hidden * hidden
        attention = 2 * queries * products * length * hidden
        return keys_and_values + attention + 2 * queries * (2 * hidden * hidden + projections * hidden * width)

    layers = (config.num_layers - 1) * layer(length) + layer(predictions)
    projection = 2 * length * token_size * hidden if token_size != hidden else 0
    transform = hidden * token_size if config.prediction_transform else 0
    head = 2 * predictions * (transform + token_size * padded_vocabulary_size(vocabulary_size))
    return projection + layers, head


def training_flops(config, **row):
    """Returns the operations of one row's training step; arguments as in `forward_flops`."""
    encoder, head = forward_flops(config, **row)
    return (4 if config.rematerialize else 3) * encoder + 3 * head


def activation_bytes(config, *, length, predictions, vocabulary_size, compute_bytes):
    """Returns an estimate of the memory of one row's activations in training, in bytes.

    Per layer and token about 17 hidden-sized values are kept (the input, the joint projection, attention's answer, the
    two sums and normalisations, masks), three of the feed-forward width (five where it is gated), and for each head three
    rows of `length` attention values in float32; in the last layer only the input, keys and values of tokens at which
    nothing is predicted. With rematerialisation one layer is alive at a time and the others keep their input. Vectors of
    distances (`relative`) are kept once for all rows, except for those of the predicted positions.

    Args:
        config, length, predictions, vocabulary_size: as in `forward_flops`.
        compute_bytes: bytes of a number in the compute dtype.
    """
    hidden, width = config.hidden_size, config.feed_forward_size
    widths = 5 if config.gated else 3

    def layer(queries):
        values = length * 3 * hidden + queries * (14 * hidden + widths * width)
        return values * compute_bytes + 3 * 4 * config.num_heads * queries * length

    last = layer(predictions)
    if config.positions == "relative":
        last += predictions * length * config.head_size * compute_bytes
    layers = (config.num_layers - 1) * layer(length) + last
    if config.rematerialize:
        layers = config.num_layers * length * hidden * compute_bytes + layer(length)
    head = 3 * predictions * padded_vocabulary_size(vocabulary_size) * 4
    return layers + head
