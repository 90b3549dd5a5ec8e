"""Dynamic masking: which tokens a model has to predict, a pure function of each example's key.

All three modes are one algorithm over groups of tokens. A group is a token (`token`), a word with its continuation
pieces (`whole_word`), or a run of words (`ngram`: Joshi et al. 2020, "SpanBERT", arXiv 1907.10529: a break stands before
each word with probability p, so that lengths are geometric, and a run longer than the maximum is cut). Groups are taken
in a random order until `rate` of the row's tokens is reached. The group that crosses the limit is taken with the
probability that makes the *expected* number of masked tokens right. Shapes are static: a row has a fixed number of
prediction slots, and a weight tells which are used.

Runs on the device, in `keras.ops`.
"""

import dataclasses
import math

import numpy as np
from keras import ops

from trainer import randomness

MODES = ("token", "whole_word", "ngram")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How tokens are chosen and replaced.

    Args:
        mode: `token`, `whole_word` or `ngram`.
        rate: share of a row's maskable tokens to predict.
        mask_share: share of the chosen that become `[MASK]`.
        random_share: share of the chosen that become a random token; the rest stay as they are.
        max_predictions: prediction slots a row, the most it can have; None for `rate` of a full row, rounded up.
        ngram_break: probability of a break before each word in mode `ngram`; the mean length is about its inverse.
        ngram_max: most words in a run.
    """

    mode: str = "token"
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    max_predictions: int | None = None
    ngram_break: float = 0.2
    ngram_max: int = 10

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"masking.mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        for name in ("rate", "ngram_break"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"masking.{name} must lie between 0 and 1, got {getattr(self, name)}")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(
                "masking.mask_share and masking.random_share must not be negative and must sum to at most 1, "
                f"got {self.mask_share} and {self.random_share}"
            )

    def num_slots(self, sequence_length):
        """Returns the number of prediction slots a row."""
        return min(sequence_length, self.max_predictions or math.ceil(self.rate * sequence_length))


@dataclasses.dataclass(frozen=True)
class TokenKinds:
    """What masking must know of a vocabulary.

    Attributes:
        mask_id: id of `[MASK]`.
        maskable: `[vocabulary]` booleans, false for padding and special tokens.
        continues_word: `[vocabulary]` booleans, true for pieces that continue a word (`##ing`).
        ordinary_ids: ids that a random replacement is drawn from.
    """

    mask_id: int
    maskable: np.ndarray
    continues_word: np.ndarray
    ordinary_ids: np.ndarray

    @classmethod
    def of(cls, pieces):
        """Returns the kinds of a BERT vocabulary.

        Args:
            pieces: list of strings, the piece of each id.
        """
        special = np.array([piece in ("[PAD]", "[CLS]", "[SEP]", "[MASK]") for piece in pieces])
        unlikely = np.array([piece == "[UNK]" or piece.startswith("[unused") for piece in pieces])
        return cls(
            mask_id=pieces.index("[MASK]"),
            maskable=~special,
            continues_word=np.array([piece.startswith("##") for piece in pieces]),
            ordinary_ids=np.flatnonzero(~special & ~unlikely).astype("int32"),
        )


@dataclasses.dataclass(frozen=True)
class Masked:
    """Rows with tokens to predict.

    Attributes:
        token_ids: `[batch, length]` int32, the model's input.
        positions: `[batch, slots]` int32, where to predict; 0 in unused slots.
        labels: `[batch, slots]` int32, the original tokens there.
        weights: `[batch, slots]` float32, 1 in used slots, else 0.
    """

    token_ids: object
    positions: object
    labels: object
    weights: object


def _lookup(table, ids):
    """Looks booleans up by id; the table travels as int8, a fourth of the bytes."""
    return ops.take(ops.convert_to_tensor(table.astype("int8")), ids, axis=0) > 0


def _previous(flags):
    """Shifts `[batch, length]` booleans one to the right; false comes in."""
    return ops.concatenate([ops.zeros_like(flags[:, :1]), flags[:, :-1]], axis=1)


def _group_starts(config, keys, token_ids, maskable, kinds):
    """Returns `[batch, length]` booleans, true where a group begins."""
    if config.mode == "token":
        return maskable
    inside_word = ops.logical_and(_lookup(kinds.continues_word, token_ids), _previous(maskable))
    word_start = ops.logical_and(maskable, ops.logical_not(inside_word))
    if config.mode == "whole_word":
        return word_start
    length = token_ids.shape[1]
    drawn = randomness.random_uniform(randomness.fold_in(keys, "breaks"), length) < config.ngram_break
    forced = ops.logical_not(_previous(maskable))
    breaks = ops.logical_and(word_start, ops.logical_or(drawn, forced))
    # The words since the last break tell where a run has reached its greatest length.
    word_number = ops.cumsum(ops.cast(word_start, "int32"), axis=1)
    earlier = np.tril(np.ones((length, length), bool))
    broken = ops.where(ops.logical_and(breaks[:, None, :], earlier[None]), word_number[:, None, :], 0)
    since = word_number - ops.max(broken, axis=2)
    return ops.logical_and(word_start, since % config.ngram_max == 0)


def mask_tokens(config, keys, token_ids, kinds):
    """Chooses tokens to predict and replaces them.

    Args:
        config: `MaskingConfig`.
        keys: `Keys` of the examples.
        token_ids: `[batch, length]` int32, 0 where padded.
        kinds: `TokenKinds` of the vocabulary.

    Returns:
        `Masked`.
    """
    keys = randomness.fold_in(keys, "masking")
    length = token_ids.shape[1]
    slots = config.num_slots(length)
    maskable = _lookup(kinds.maskable, token_ids)
    starts = ops.cast(_group_starts(config, keys, token_ids, maskable, kinds), "int32")
    group = ops.where(maskable, ops.cumsum(starts, axis=1), 0)  # [batch, length], from 1; 0 is no group

    # A group's random number orders it. Tokens sorted by it stand group by group, since equal numbers keep their order.
    drawn = randomness.random_uniform(randomness.fold_in(keys, "order"), length + 1)
    order = ops.where(maskable, ops.take_along_axis(drawn, group, axis=1), 2.0)
    _, positions = ops.top_k(-order, slots)
    positions = ops.cast(positions, "int32")  # [batch, slots]
    slot_group = ops.take_along_axis(group, positions, axis=1)

    # Where a slot's group begins among the slots, and how many tokens it has in the row.
    same = slot_group[:, :, None] == slot_group[:, None, :]
    begin = ops.min(ops.where(same, np.arange(slots, dtype="int32"), slots), axis=2)
    size = ops.sum(ops.cast(slot_group[:, :, None] == group[:, None, :], "int32"), axis=2)
    wanted = config.rate * ops.sum(ops.cast(maskable, "float32"), axis=1, keepdims=True)
    left = wanted - ops.cast(begin, "float32")
    chance = ops.take_along_axis(
        randomness.random_uniform(randomness.fold_in(keys, "crossing"), length + 1), slot_group, axis=1
    )
    taken = ops.logical_and(chance * ops.cast(size, "float32") < left, begin + size <= slots)
    taken = ops.logical_and(taken, slot_group > 0)

    labels = ops.take_along_axis(token_ids, positions, axis=1)
    hit = ops.logical_and(positions[:, :, None] == np.arange(length, dtype="int32"), taken[:, :, None])
    chosen = ops.any(hit, axis=1)  # [batch, length]

    # Words fall together in `ngram`, as in SpanBERT; else each token has a fate of its own.
    fate = randomness.random_uniform(randomness.fold_in(keys, "fate"), length + 1)
    fate = ops.take_along_axis(fate, group, axis=1) if config.mode == "ngram" else fate[:, 1:]
    stranger = randomness.random_below(randomness.fold_in(keys, "stranger"), length, len(kinds.ordinary_ids))
    stranger = ops.take(ops.convert_to_tensor(kinds.ordinary_ids), stranger, axis=0)
    replaced = ops.where(fate < config.mask_share, kinds.mask_id, stranger)
    replaced = ops.where(fate < config.mask_share + config.random_share, replaced, token_ids)
    return Masked(
        token_ids=ops.where(chosen, replaced, token_ids),
        positions=ops.where(taken, positions, 0),
        labels=ops.where(taken, labels, 0),
        weights=ops.cast(taken, "float32"),
    )
