"""The architecture of an encoder: a few choices that do not depend on one another, and together give the known models."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The architecture of an encoder; the defaults are BERT-base. `gin/models/` holds the choices of other models.

    Args:
        hidden_size: size of the hidden states; a multiple of `num_heads`.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        intermediate_size: width of the feed-forward part; None for four times `hidden_size`.
        activation: `gelu` (exact), `gelu_tanh`, or the name of a Keras activation.
        gated: whether the feed-forward part multiplies its activations with a second projection (GLU, Shazeer 2020,
            arXiv 2002.05202; with `gelu` it is GeGLU).
        use_bias: whether projections have biases.
        dropout: rate on embeddings and on the outputs of attention and feed-forward.
        attention_dropout: rate on attention probabilities.
        embedding_size: size of the embeddings, which are projected to `hidden_size` where they differ (ALBERT, ELECTRA);
            None for `hidden_size`.
        share_layers: whether all layers are one and the same (ALBERT).
        max_length: number of learned position embeddings, the longest row the model can read.
        type_vocabulary_size: number of segment types; 0 for none.
        positions: how tokens know their places. `learned`: vectors added to the embeddings; `rotary`: queries and keys
            turn with their places (Su et al. 2021, arXiv 2104.09864); `relative`: fixed sinusoidal vectors of the distance
            in keys and values (NEZHA, arXiv 1909.00204); `none`.
        hierarchical_alpha: None, or the share (0.4) by which `max_length` learned positions are combined to their square
            (Su 2020, kexue.fm/archives/7947).
        max_relative_distance: distances beyond this count as this (`relative`).
        rotary_base: base of the rotary wavelengths.
        local_rotary_base: the same in layers of local attention; None for `rotary_base`.
        attention_window: in local layers, how far a token sees to either side; None if all layers are global.
        global_every: with `attention_window`, layers whose number (from 0) is a multiple of this are global.
        attention: `bidirectional`; `causal`: only earlier tokens are seen; `unilm`: tokens of segment 0 see one another,
            later ones those before them (Dong et al. 2019, arXiv 1905.03197).
        confine_attention: whether, in packed rows, attention and positions stay inside each document.
        normalization: `layer` (Ba et al. 2016) or `rms` (Zhang and Sennrich 2019).
        norm_placement: `after` each residual sum (BERT), or `before` attention and feed-forward, with a last one on top
            and none in the first layer's attention, whose input is normalised already (ModernBERT).
        norm_scale: whether normalisations have a learned scale.
        norm_bias: whether layer normalisations have a learned bias.
        epsilon: of the normalisations.
        condition_size: size of the vector on which scales and biases of the normalisations depend (Su 2020,
            kexue.fm/archives/7124); None for none. The dependence starts at zero.
        condition_hidden_size: units of a layer between that vector and the scales; None for none.
        prediction_transform: whether the masked-language-model head has a dense layer and a normalisation.
        prediction_bias: whether it has a bias for each token.
        pooler_activation: activation of the dense layer on a pooled vector: BERT's tanh, or that of other classifiers.
        padding_id: the token id of padding, where nobody says which tokens are padding.
        initializer_range: standard deviation of the initial weights.
        rematerialize: whether each layer's activations are recomputed in the backward pass instead of kept.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int | None = None
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    embedding_size: int | None = None
    share_layers: bool = False
    max_length: int = 512
    type_vocabulary_size: int = 2
    positions: Literal["learned", "rotary", "relative", "none"] = "learned"
    hierarchical_alpha: float | None = None
    max_relative_distance: int = 64
    rotary_base: float = 10000.0
    local_rotary_base: float | None = None
    attention_window: int | None = None
    global_every: int = 3
    attention: Literal["bidirectional", "causal", "unilm"] = "bidirectional"
    confine_attention: bool = True
    normalization: Literal["layer", "rms"] = "layer"
    norm_placement: Literal["after", "before"] = "after"
    norm_scale: bool = True
    norm_bias: bool = True
    epsilon: float = 1e-12
    condition_size: int | None = None
    condition_hidden_size: int | None = None
    prediction_transform: bool = True
    prediction_bias: bool = True
    pooler_activation: str = "tanh"
    padding_id: int = 0
    initializer_range: float = 0.02
    rematerialize: bool = False

    def __post_init__(self):
        for name in ("hidden_size", "num_layers", "num_heads", "max_length", "max_relative_distance", "global_every"):
            self._at_least(name, 1)
        for name in ("intermediate_size", "embedding_size", "attention_window", "condition_size"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        self._at_least("type_vocabulary_size", 0)
        self._at_least("padding_id", 0)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"encoder.hidden_size {self.hidden_size} is not a multiple of encoder.num_heads {self.num_heads}"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"encoder.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions need heads of even size, hidden_size / num_heads is {self.head_size}")
        if self.hierarchical_alpha is not None:
            if self.positions != "learned":
                raise ValueError("encoder.hierarchical_alpha combines learned positions; these are " + self.positions)
            if not 0 < self.hierarchical_alpha < 1 or self.hierarchical_alpha == 0.5:
                raise ValueError(
                    f"encoder.hierarchical_alpha must lie in (0, 1) and not be 0.5, at which the places (i, j) and (j, i) "
                    f"are the same; got {self.hierarchical_alpha}"
                )
        if self.attention == "unilm" and self.type_vocabulary_size < 2:
            raise ValueError(
                "encoder.attention 'unilm' goes by segments: encoder.type_vocabulary_size must be 2 or more"
            )
        if self.condition_hidden_size is not None and self.condition_size is None:
            raise ValueError("encoder.condition_hidden_size needs encoder.condition_size")

    def _at_least(self, name, least):
        if getattr(self, name) < least:
            raise ValueError(f"encoder.{name} must be at least {least}, got {getattr(self, name)}")

    @classmethod
    def of(cls, config):
        """Returns a configuration as it is, or made from the dict of its fields that a saved layer holds."""
        return config if isinstance(config, cls) else cls(**config)

    @property
    def feed_forward_size(self):
        """Width of the feed-forward part."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def head_size(self):
        """Size of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def token_size(self):
        """Size of the embeddings."""
        return self.embedding_size or self.hidden_size

    @property
    def longest_row(self):
        """Tokens in the longest row that the model can read."""
        return self.max_length if self.hierarchical_alpha is None else self.max_length**2

    def is_local(self, layer):
        """Returns whether the attention of a layer, by its number, is local."""
        return self.attention_window is not None and layer % self.global_every != 0

    def rotary_base_of(self, layer):
        """Returns the base of the rotary wavelengths in a layer, by its number."""
        local = self.is_local(layer) and self.local_rotary_base is not None
        return self.local_rotary_base if local else self.rotary_base
