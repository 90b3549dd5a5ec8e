"""How a tensor of ours is made of tensors elsewhere, and back; both ways without losing a bit."""

import dataclasses

import numpy as np

_ROWS = 16


def _transpose(matrix):
    """Returns the transpose, an array of its own; some rows at a time, which takes a quarter of NumPy's time at once."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for first in range(0, len(matrix), _ROWS):
        result[:, first : first + _ROWS] = matrix[first : first + _ROWS].T
    return result


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor elsewhere, and how it is laid out.

    Attributes:
        name: its name there.
        transposed: whether it is a matrix `[out, in]` where ours are `[in, out]`.
        skipped_rows: rows at its start that have no counterpart here (RoBERTa's positions begin at 2).
        interleaved_heads: 0, or the number of attention heads whose rotary pairs are neighbours there; here number i of
            a head's first half and number i of its second are a pair.
    """

    name: str
    transposed: bool = False
    skipped_rows: int = 0
    interleaved_heads: int = 0

    def inward(self, array):
        """Returns the array as ours are laid out; a view where possible."""
        if self.transposed:
            array = _transpose(array)
        if self.skipped_rows:
            array = array[self.skipped_rows :]
        if self.interleaved_heads:
            shape = array.shape
            array = array.reshape(*shape[:-1], self.interleaved_heads, -1, 2)
            array = array.swapaxes(-1, -2).reshape(shape)
        return array

    def inward_shape(self, shape):
        """Returns the shape of what `inward` returns for an array of a shape."""
        shape = tuple(reversed(shape)) if self.transposed else tuple(shape)
        return (shape[0] - self.skipped_rows, *shape[1:]) if shape else shape

    def outward_shape(self, shape):
        """Returns the shape of what `outward` returns for an array of a shape."""
        shape = (shape[0] + self.skipped_rows, *shape[1:])
        return tuple(reversed(shape)) if self.transposed else shape

    def outward(self, array):
        """Returns the array as theirs is laid out; rows that we lack are zero."""
        if self.interleaved_heads:
            shape = array.shape
            array = array.reshape(*shape[:-1], self.interleaved_heads, 2, -1)
            array = array.swapaxes(-1, -2).reshape(shape)
        if self.skipped_rows:
            array = np.concatenate([np.zeros((self.skipped_rows, *array.shape[1:]), array.dtype), array])
        return _transpose(array) if self.transposed else np.ascontiguousarray(array)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our tensors.

    Attributes:
        name: its name in a model of ours, without the model's own: `encoder/layer_0/intermediate/kernel`.
        parts: the `Part`s it is made of, joined along the last axis.
        rows: `tokens` if its rows are tokens, which are padded here; `positions`; None for neither.
    """

    name: str
    parts: tuple
    rows: str | None = None

    def read(self, tensors):
        """Returns our array, not yet padded, of tensors elsewhere.

        Args:
            tensors: something with `read(name)` that returns a NumPy array.
        """
        arrays = [part.inward(tensors.read(part.name)) for part in self.parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)

    def shape(self, shapes):
        """Returns the shape of what `read` returns, or None if the parts do not go together.

        Args:
            shapes: `{name: shape}` of tensors elsewhere.
        """
        *others, last = (part.inward_shape(shapes[part.name]) for part in self.parts)
        if any(len(other) != len(last) or other[:-1] != last[:-1] for other in others):
            return None
        return (*last[:-1], sum(shape[-1] for shape in (*others, last)))

    def written_shape(self, number, shape):
        """Returns the shape of the tensor elsewhere that part `number` is, for our shape without padding."""
        return self.parts[number].outward_shape((*shape[:-1], shape[-1] // len(self.parts)))

    def write(self, number, array):
        """Returns the array elsewhere that part `number` is, of our array without padding."""
        size = array.shape[-1] // len(self.parts)
        return self.parts[number].outward(array[..., number * size : (number + 1) * size])


@dataclasses.dataclass(frozen=True)
class Style:
    """How a library names and lays out the variables of its layers.

    Attributes:
        kernel, bias, scale, shift, table: what follows the layer's name; kernels are matrices of projections, scale and
            shift belong to normalisations, tables to embeddings.
        transposed: whether kernels are `[out, in]`.
    """

    kernel: str
    bias: str
    scale: str
    shift: str
    table: str
    transposed: bool


TORCH = Style(".weight", ".bias", ".weight", ".bias", ".weight", True)
TENSORFLOW = Style("/kernel", "/bias", "/gamma", "/beta", "", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameScheme:
    """The names of a model's layers elsewhere; None for what it does not have. The defaults are Hugging Face's BERT.

    `{layer}` stands for a layer's number. Names of the encoder's parts follow `base`, which files of a bare encoder lack.
    Where a classifier has a dense layer of its own instead of the encoder's pooler, that is `classifier_pooler`.
    """

    style: Style = TORCH
    base: str = "bert."
    word: str = "embeddings.word_embeddings"
    position: str = "embeddings.position_embeddings"
    first_position: int = 0
    type: str = "embeddings.token_type_embeddings"
    embedding_norm: str = "embeddings.LayerNorm"
    embedding_projection: str | None = "embeddings_project"
    layer: str = "encoder.layer.{layer}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    query_key_value: str | None = None
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    intermediate: str = "intermediate.dense"
    output: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    final_norm: str | None = None
    interleaved: bool = False
    pooler: str | None = "bert.pooler.dense"
    token_dense: str | None = "cls.predictions.transform.dense"
    token_norm: str | None = "cls.predictions.transform.LayerNorm"
    token_bias: str | None = "cls.predictions.bias"
    pair: tuple | None = ("cls.seq_relationship.weight", "cls.seq_relationship.bias")
    classifier: str | None = "classifier"
    classifier_pooler: str | None = None
    classifier_variables: tuple | None = None
    replaced_dense: str | None = None
    replaced_score: str | None = None

    def entries(self, config, classifies=False):
        """Returns the `Entry`s of everything that a model of an architecture may have: the encoder, and all known heads.

        Args:
            config: `EncoderConfig`.
            classifies: whether it has a classifier.
        """
        pooler = self.pooler_for(classifies)
        return [*self._embedding_entries(config), *self._layer_entries(config), *self._head_entries(config, pooler)]

    def pooler_for(self, classifies):
        """Returns the name of the dense layer on the pooled vector of a model, by whether that has a classifier."""
        return self.classifier_pooler if classifies and self.classifier_pooler else self.pooler

    def _table(self, ours, theirs, rows, skipped=0):
        return Entry(ours, (Part(self.base + theirs + self.style.table, skipped_rows=skipped),), rows)

    def _dense(self, ours, *theirs, bias=True, interleaved=0):
        """The kernel and bias of a projection, of one or several elsewhere."""
        style = self.style
        turned = [interleaved if number < 2 else 0 for number in range(len(theirs))]  # queries and keys, not values
        kernels = [Part(n + style.kernel, style.transposed, 0, t) for n, t in zip(theirs, turned, strict=True)]
        entries = [Entry(f"{ours}/kernel", tuple(kernels))]
        if bias:
            biases = [Part(n + style.bias, interleaved_heads=t) for n, t in zip(theirs, turned, strict=True)]
            entries.append(Entry(f"{ours}/bias", tuple(biases)))
        return entries

    def _norm(self, config, ours, theirs):
        wanted = []
        if config.norm_scale:
            wanted.append(("gamma", self.style.scale))
        if config.norm_bias and config.normalization == "layer":
            wanted.append(("beta", self.style.shift))
        return [Entry(f"{ours}/{name}", (Part(theirs + suffix),)) for name, suffix in wanted]

    def _embedding_entries(self, config):
        entries = [self._table("encoder/embeddings/word_embeddings/embeddings", self.word, "tokens")]
        if config.positions == "learned":
            ours = "encoder/embeddings/position_embeddings/embeddings"
            entries.append(self._table(ours, self.position, "positions", self.first_position))
        if config.type_vocabulary_size:
            entries.append(self._table("encoder/embeddings/type_embeddings/embeddings", self.type, None))
        entries += self._norm(config, "encoder/embeddings/norm", self.base + self.embedding_norm)
        if config.token_size != config.hidden_size:
            name = self.base + self.embedding_projection
            entries += self._dense("encoder/embedding_projection", name, bias=config.use_bias)
        return entries

    def _layer_entries(self, config):
        entries, bias = [], config.use_bias
        for number in range(1 if config.share_layers else config.num_layers):
            ours, theirs = f"encoder/layer_{number}", self.base + self.layer.format(layer=number)
            sources = (self.query, self.key, self.value)
            if self.query_key_value is not None:
                sources = (self.query_key_value,)
            entries += self._dense(
                f"{ours}/attention/query_key_value",
                *(theirs + name for name in sources),
                bias=bias,
                interleaved=config.num_heads if self.interleaved else 0,
            )
            entries += self._dense(f"{ours}/attention/output", theirs + self.attention_output, bias=bias)
            if config.norm_placement == "after" or number > 0:
                entries += self._norm(config, f"{ours}/attention_norm", theirs + self.attention_norm)
            entries += self._dense(f"{ours}/intermediate", theirs + self.intermediate, bias=bias)
            entries += self._dense(f"{ours}/output", theirs + self.output, bias=bias)
            entries += self._norm(config, f"{ours}/output_norm", theirs + self.output_norm)
        if config.norm_placement == "before":
            entries += self._norm(config, "encoder/final_norm", self.base + self.final_norm)
        return entries

    def _head_entries(self, config, pooler):
        entries = []
        if self.token_dense and config.prediction_transform:
            entries += self._dense("masked_language_model/transform", self.token_dense, bias=config.use_bias)
            entries += self._norm(config, "masked_language_model/norm", self.token_norm)
        if self.token_bias and config.prediction_bias:
            entries.append(Entry("masked_language_model/output_bias", (Part(self.token_bias),), "tokens"))
        if pooler:
            entries += self._dense("pooler/pooler", pooler)
        for ours, variables in (("sentence_pair", self.pair), ("classifier", self.classifier_variables)):
            if variables:
                kernel, bias = variables
                entries.append(Entry(f"{ours}/classifier/kernel", (Part(kernel, transposed=True),)))
                entries.append(Entry(f"{ours}/classifier/bias", (Part(bias),)))
        for ours, theirs in (
            ("classifier/classifier", self.classifier),
            ("replaced_token_detection/dense", self.replaced_dense),
            ("replaced_token_detection/score", self.replaced_score),
        ):
            if theirs:
                entries += self._dense(ours, theirs)
        return entries
