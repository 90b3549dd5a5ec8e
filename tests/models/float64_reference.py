"""The parts of an encoder in plain NumPy and float64, for tests to put together; one row at a time."""

import math

import numpy as np

from trainer.models.architecture import EncoderConfig


def weights_of(layer, prefix=None):
    """Returns `{name after the prefix: float64 array}` of a built layer's weights; None for its own name."""
    prefix = f"{layer.name}/" if prefix is None else prefix
    return {v.path.partition(prefix)[2]: np.array(v, np.float64) for v in layer.trainable_variables}


def add_noise(layer, scale=0.1, seed=0):
    """Adds noise to all weights of a built layer: zero biases would hide mistakes. Returns the layer."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(variable + scale * rng.normal(size=variable.shape))
    return layer


def dense(weights, name, x):
    """A projection, with its bias if there is one."""
    return x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)


def layer_norm(weights, name, x, epsilon):
    """Ba et al. 2016, with what there is of scale and bias."""
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * weights.get(f"{name}/gamma", 1.0) + weights.get(f"{name}/beta", 0.0)


def rms_norm(weights, name, x, epsilon):
    """Zhang and Sennrich 2019, with a scale if there is one."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weights.get(f"{name}/gamma", 1.0)


def gelu(x):
    """x times the probability that a normal number is below it."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def relu(x):
    """What is above zero."""
    return np.maximum(x, 0)


def softmax(x):
    """Along the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attention(config, weights, name, x, visible, bias=0.0, turned=None, relative=None):
    """Self-attention of a row, without the projection of its output.

    Args:
        config: `EncoderConfig`.
        weights, name: of the attention layer.
        x: `[length, hidden]`.
        visible: `[length, length]` or `[heads, length, length]` booleans, whether the first token sees the second.
        bias: added to the logits, of the same shapes.
        turned: function of a head's `[length, head_size]` that turns it by its places, or None.
        relative: `[length, length, head_size]`, added to keys and values, or None.

    Returns:
        `[length, hidden]`.
    """
    query, key, value = np.split(dense(weights, f"{name}/query_key_value", x), 3, axis=-1)
    visible = np.broadcast_to(visible, (config.num_heads, len(x), len(x)))  # one for all heads, or one for each
    bias = np.broadcast_to(bias, visible.shape)
    heads = []
    for head in range(config.num_heads):
        part = slice(head * config.head_size, (head + 1) * config.head_size)
        q, k, v = query[:, part], key[:, part], value[:, part]
        if turned is not None:
            q, k = turned(q), turned(k)
        keys = k[None] + (0 if relative is None else relative)  # [query or 1, key, size]
        values = v[None] + (0 if relative is None else relative)
        logits = np.einsum("qd,qkd->qk", q, np.broadcast_to(keys, (len(x), len(x), config.head_size)))
        logits = np.where(visible[head], logits / math.sqrt(config.head_size) + bias[head], -1e9)
        values = np.broadcast_to(values, (len(x), *v.shape))
        heads.append(np.einsum("qk,qkd->qd", softmax(logits), values))
    return np.concatenate(heads, axis=-1)


def turned_halves(base, places):
    """Returns a function that turns number i of a head's first half with number i of its second, as pairs.

    Args:
        base: of the wavelengths.
        places: `[length]` integers.
    """

    def turned(x):
        half = x.shape[-1] // 2
        angles = np.asarray(places)[:, None] * float(base) ** (-np.arange(half) / half)
        rotated = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([rotated.real, rotated.imag], axis=-1)

    return turned


def turned_neighbours(base, places):
    """Returns a function that turns numbers 2 i and 2 i + 1 of a head as pairs (Su et al. 2021, equation 34)."""

    def turned(x):
        half = x.shape[-1] // 2
        angles = np.asarray(places)[:, None] * float(base) ** (-np.arange(half) / half)
        rotated = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)
        return np.stack([rotated.real, rotated.imag], axis=-1).reshape(x.shape)

    return turned


def nezha_distances(length, head_size, most):
    """Returns `[length, length, head_size]`: sines and cosines of the distance, cut off at `most` (arXiv 1909.00204, 2.1).

    The published code counts the distance -most as 0.
    """
    table = np.zeros((length, length, head_size))
    for i in range(length):
        for j in range(length):
            number = min(max(j - i, -most), most) + most
            for k in range(0, head_size, 2):
                angle = number / 10000 ** (k / head_size)
                table[i, j, k], table[i, j, k + 1] = math.sin(angle), math.cos(angle)
    return table


def encode_row(config, weights, ids, segments, documents=None, visible=None, bias=0.0, **how):
    """A whole forward pass of an encoder with normalisations after the sums, as BERT's.

    Args:
        config: `EncoderConfig`.
        weights: `weights_of` the encoder.
        ids, segments: `[length]` integers.
        documents: `[length]` integers, 0 for padding; None for one document.
        visible, bias: as in `attention`, or a function of a layer's number that returns it; by default a token sees its
            document (with `confine_attention`) or all but padding.
        how: `turned`, `relative` of `attention`; `norm`, a function as `layer_norm`; `activation`.

    Returns:
        `[length, hidden]`.
    """
    assert isinstance(config, EncoderConfig) and config.norm_placement == "after"
    norm, activation = how.pop("norm", layer_norm), how.pop("activation", gelu)
    documents = np.ones(len(ids), int) if documents is None else np.asarray(documents)
    if visible is None:
        visible = np.broadcast_to(documents[None] != 0, (len(ids), len(ids)))
        if config.confine_attention:
            visible = visible & (documents[:, None] == documents[None])
    visible_in = visible if callable(visible) else lambda number: visible
    x = weights["embeddings/word_embeddings/embeddings"][ids]
    if config.positions == "learned":
        places = np.arange(len(ids))
        if config.confine_attention:
            places = np.array([np.sum(documents[:i] == documents[i]) for i in range(len(ids))])
        x = x + weights["embeddings/position_embeddings/embeddings"][places]
    if config.type_vocabulary_size:
        x = x + weights["embeddings/type_embeddings/embeddings"][segments]
    x = norm(weights, "embeddings/norm", x, config.epsilon)
    if config.token_size != config.hidden_size:
        x = dense(weights, "embedding_projection", x)
    for number in range(config.num_layers):
        name = f"layer_{0 if config.share_layers else number}"
        mixed = attention(config, weights, f"{name}/attention", x, visible_in(number), bias, **how)
        x = norm(
            weights, f"{name}/attention_norm", x + dense(weights, f"{name}/attention/output", mixed), config.epsilon
        )
        inner = activation(dense(weights, f"{name}/intermediate", x))
        x = norm(weights, f"{name}/output_norm", x + dense(weights, f"{name}/output", inner), config.epsilon)
    return x
