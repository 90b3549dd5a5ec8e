"""Randomness: uniform, independent, and a function of the counters alone."""

import numpy as np
import pytest
from keras import ops

from trainer import randomness


def _bits(seed=1, step=2, index=(0, 1, 2, 3), count=20000, purpose="test"):
    keys = randomness.fold_in(randomness.example_keys(seed, step, np.array(index)), purpose)
    return ops.convert_to_numpy(randomness.random_bits(keys, count))


def test_numbers_do_not_depend_on_the_batch_an_example_is_in():
    whole = _bits(index=range(8))
    np.testing.assert_array_equal(whole[5:], _bits(index=(5, 6, 7)))
    np.testing.assert_array_equal(whole[[3]], _bits(index=(3,)))


@pytest.mark.parametrize("change", [{"seed": 2}, {"seed": 1 + (1 << 32)}, {"step": 3}, {"purpose": "other"}])
def test_another_seed_step_or_purpose_gives_unrelated_numbers(change):
    equal = np.mean(_bits() == _bits(**change))
    assert equal < 1e-3


def test_every_bit_is_fair_and_neighbours_are_independent():
    bits = _bits(count=50000)
    flags = (bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    # Five standard deviations of the mean of 200,000 fair coins.
    assert np.abs(flags.mean(axis=(0, 1)) - 0.5).max() < 5 * 0.5 / np.sqrt(flags.shape[0] * flags.shape[1])
    centred = bits.astype(np.float64) / 2**32 - 0.5
    for lag in (1, 2, 3, 64):
        correlation = (centred[:, :-lag] * centred[:, lag:]).mean() * 12
        assert abs(correlation) < 5 / np.sqrt(centred[:, lag:].size)
    between = (centred[0] * centred[1]).mean() * 12
    assert abs(between) < 5 / np.sqrt(centred.shape[1])


def test_sequences_of_consecutive_keys_are_no_shifted_copies():
    bits = _bits(index=range(64), count=256)
    assert len(np.unique(bits)) > 0.999 * bits.size


def test_uniform_numbers_fill_the_unit_interval_evenly():
    keys = randomness.example_keys(0, 0, np.arange(16))
    numbers = ops.convert_to_numpy(randomness.random_uniform(keys, 10000))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
    expected = numbers.size / 50
    chi_squared = np.sum((counts - expected) ** 2 / expected)
    assert chi_squared < 100  # 49 degrees of freedom: mean 49, standard deviation 10


def test_whole_numbers_stay_below_their_limit_and_reach_all_of_it():
    keys = randomness.example_keys(0, 0, np.arange(4))
    numbers = ops.convert_to_numpy(randomness.random_below(keys, 5000, 7))
    assert set(np.unique(numbers)) == set(range(7))


def test_masks_keep_the_wanted_share():
    keys = randomness.example_keys(0, 1, np.arange(8))
    kept = ops.convert_to_numpy(randomness.keep_mask(keys, (50, 100), 0.1))
    assert kept.shape == (8, 50, 100)
    assert kept.mean() == pytest.approx(0.9, abs=5 * 0.3 / np.sqrt(kept.size))
