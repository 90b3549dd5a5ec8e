"""Masking: the wanted rates, whole groups, never a special token, fresh in every epoch."""

import numpy as np
import pytest
from keras import ops

from trainer import randomness
from trainer.data.masking import MODES, MaskingConfig, TokenKinds, mask_tokens

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += [f"{'##' if i % 4 == 0 else ''}p{i}" for i in range(1000 - len(PIECES))]
KINDS = TokenKinds.of(PIECES)
LENGTH = 64


def _rows(num_rows=400, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, len(PIECES), (num_rows, LENGTH)).astype(np.int32)
    ids[:, 0] = 2
    num_tokens = rng.integers(20, LENGTH + 1, num_rows)
    ids[np.arange(num_rows), num_tokens // 2] = 3
    ids[np.arange(num_rows), num_tokens - 1] = 3
    return ids * (np.arange(LENGTH) < num_tokens[:, None])


def _masked(ids, step=0, **config):
    keys = randomness.example_keys(7, step, np.arange(len(ids)))
    masked = mask_tokens(MaskingConfig(max_predictions=24, **config), keys, ops.convert_to_tensor(ids), KINDS)
    return {name: ops.convert_to_numpy(value) for name, value in vars(masked).items()}


def _chosen(ids, masked):
    """`[rows, length]` booleans of the tokens to predict."""
    chosen = np.zeros(ids.shape, bool)
    rows, slots = np.nonzero(masked["weights"])
    chosen[rows, masked["positions"][rows, slots]] = True
    return chosen


@pytest.mark.parametrize("mode", MODES)
def test_rates_are_those_that_were_asked_for(mode):
    ids = _rows()
    shares = []
    kinds = {"mask": 0, "same": 0, "other": 0}
    for step in range(5):
        masked = _masked(ids, step, mode=mode, rate=0.15)
        chosen = _chosen(ids, masked)
        shares.append(chosen.sum() / KINDS.maskable[ids].sum())
        new, old = masked["token_ids"][chosen], ids[chosen]
        kinds["mask"] += np.sum(new == 4)
        kinds["same"] += np.sum(new == old)
        kinds["other"] += np.sum((new != 4) & (new != old))
    assert np.mean(shares) == pytest.approx(0.15, rel=0.02)
    total = sum(kinds.values())
    # Words fall together in `ngram`, so the effective number of draws is about a fifth.
    tolerance = 5 * 0.4 / np.sqrt(total / (5 if mode == "ngram" else 1))
    assert kinds["mask"] / total == pytest.approx(0.8, abs=tolerance)
    assert kinds["same"] / total == pytest.approx(0.1, abs=tolerance)
    assert kinds["other"] / total == pytest.approx(0.1, abs=tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_special_tokens_and_padding_are_never_chosen(mode):
    ids = _rows()
    for step in range(3):
        masked = _masked(ids, step, mode=mode, rate=0.3)
        chosen = _chosen(ids, masked)
        assert KINDS.maskable[ids[chosen]].all()
        np.testing.assert_array_equal(masked["token_ids"][~chosen], ids[~chosen])
        used = masked["weights"] > 0
        labels = np.take_along_axis(ids, masked["positions"], axis=1)
        np.testing.assert_array_equal(masked["labels"][used], labels[used])
        assert (masked["labels"][~used] == 0).all()
        assert chosen.sum() == used.sum()  # no position twice


def test_whole_words_are_masked_whole():
    ids = _rows()
    chosen = _chosen(ids, _masked(ids, mode="whole_word", rate=0.2))
    continues = KINDS.continues_word[ids]
    for row in range(len(ids)):
        for position in range(1, LENGTH):
            if continues[row, position] and KINDS.maskable[ids[row, position - 1]]:
                assert chosen[row, position] == chosen[row, position - 1]


def test_ngrams_have_geometric_lengths_up_to_the_maximum():
    ids = np.full((600, LENGTH), 6, np.int32)  # whole words only
    ids[:, 0] = 2
    chosen = _chosen(ids, _masked(ids, mode="ngram", rate=0.15, ngram_break=0.25, ngram_max=6))
    lengths = []
    for row in chosen:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        lengths += list(edges[1::2] - edges[::2])
    lengths = np.array(lengths)
    # A capped geometric length has mean (1 - 0.75**6) / 0.25 = 3.3; runs that touch each other read as longer ones.
    assert 3.0 < lengths.mean() < 4.2
    assert np.mean(lengths == 1) < 0.35
    alone = lengths[lengths <= 6]
    assert len(alone) > 0.9 * len(lengths)


def test_masks_differ_from_step_to_step_and_not_with_the_batch():
    ids = _rows(64)
    first, second = _masked(ids, 0, rate=0.15), _masked(ids, 1, rate=0.15)
    overlap = (_chosen(ids, first) & _chosen(ids, second)).sum() / _chosen(ids, first).sum()
    assert overlap < 0.3
    keys = randomness.example_keys(7, 0, np.arange(32, 64))
    part = mask_tokens(MaskingConfig(max_predictions=24), keys, ops.convert_to_tensor(ids[32:]), KINDS)
    np.testing.assert_array_equal(ops.convert_to_numpy(part.token_ids), first["token_ids"][32:])


def test_slots_are_never_overrun():
    masked = _masked(_rows(), rate=0.9, mode="whole_word")
    assert masked["positions"].shape == (400, 24)
    assert masked["weights"].sum(axis=1).max() <= 24


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mode": "words"}, "token, whole_word, ngram"),
        ({"rate": 0}, "masking.rate"),
        ({"mask_share": 0.8, "random_share": 0.3}, "at most 1"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        MaskingConfig(**setting)
