"""Schedules: warm-up and decay as written, step by step."""

import math

import numpy as np
import pytest

from trainer.optimizers.schedules import ConstantSchedule, CosineSchedule, LinearSchedule


def _rates(schedule, steps):
    return np.array([float(schedule(np.float32(step))) for step in steps])


def test_linear_warm_up_and_decay():
    rates = _rates(LinearSchedule(peak=2.0, total_steps=110, warmup_steps=10), range(130))
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 11, rtol=1e-6)
    np.testing.assert_allclose(rates[10:111], 2.0 * (1 - np.arange(101) / 100), rtol=1e-5, atol=1e-6)
    assert (rates[111:] == 0).all()


def test_cosine_decay_ends_at_its_final_share():
    rates = _rates(CosineSchedule(peak=1.0, total_steps=100, warmup_steps=0, final_share=0.1), [0, 50, 100, 500])
    np.testing.assert_allclose(rates, [1.0, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)), 0.1, 0.1], rtol=1e-6)


def test_a_constant_rate_is_constant():
    np.testing.assert_allclose(_rates(ConstantSchedule(peak=0.3), [0, 1, 1000]), 0.3)


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="between 0 and total_steps 10"):
        LinearSchedule(peak=1.0, total_steps=10, warmup_steps=11)
