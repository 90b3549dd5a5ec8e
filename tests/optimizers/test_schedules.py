"""Schedules: warm-up and decay as written, step by step."""

import math

import numpy as np
import pytest

from trainer.optimizers.schedules import (
    ConstantSchedule,
    CosineSchedule,
    InverseSquareRootSchedule,
    LinearSchedule,
    PiecewiseLinearSchedule,
    PolynomialSchedule,
    RelativeStepSchedule,
    WarmupStableDecaySchedule,
)


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


def test_polynomial_decay():
    rates = _rates(PolynomialSchedule(peak=2.0, total_steps=100, warmup_steps=0, power=2.0), [0, 25, 50, 100, 200])
    np.testing.assert_allclose(rates, [2.0, 2.0 * 0.75**2, 0.5, 0.0, 0.0], rtol=1e-6)


def test_inverse_square_root_decay_meets_its_warm_up():
    rates = _rates(InverseSquareRootSchedule(peak=0.5, warmup_steps=100), [0, 49, 99, 399, 9999])
    np.testing.assert_allclose(rates, [0.005, 0.25, 0.5, 0.25, 0.05], rtol=1e-6)


def test_warm_up_stable_decay_has_a_plateau_and_ends_with_one_minus_sqrt():
    schedule = WarmupStableDecaySchedule(peak=1.0, total_steps=1000, warmup_steps=9, decay_steps=100, final_share=0.2)
    rates = _rates(schedule, [0, 4, 9, 500, 900, 925, 1000, 2000])
    np.testing.assert_allclose(rates, [0.1, 0.5, 1.0, 1.0, 1.0, 0.2 + 0.8 * 0.5, 0.2, 0.2], rtol=1e-6)
    with pytest.raises(ValueError, match="do not fit into 50"):
        WarmupStableDecaySchedule(peak=1.0, total_steps=50, warmup_steps=20, decay_steps=40)


def test_piecewise_lines_begin_at_zero_unless_a_knot_is_there():
    rates = _rates(PiecewiseLinearSchedule(peak=2.0, knots={1000: 1, 3000: 0.1}), [0, 500, 1000, 2000, 3000, 9000])
    np.testing.assert_allclose(rates, [0.0, 1.0, 2.0, 1.1, 0.2, 0.2], rtol=1e-6)
    rates = _rates(PiecewiseLinearSchedule(peak=1.0, knots={10: 0.5, 0: 1}), [0, 5, 10, 11])
    np.testing.assert_allclose(rates, [1.0, 0.75, 0.5, 0.5], rtol=1e-6)
    assert _rates(PiecewiseLinearSchedule(peak=1.0, knots={4: 1}), [2, 4, 8]).tolist() == [0.5, 1.0, 1.0]
    for wrong in ({}, {-1: 1.0}):
        with pytest.raises(ValueError, match="knots must be"):
            PiecewiseLinearSchedule(peak=1.0, knots=wrong)


def test_relative_steps_are_those_of_adafactor():
    np.testing.assert_allclose(_rates(RelativeStepSchedule(), [0, 9999, 39999]), [0.01, 0.01, 0.005], rtol=1e-6)
    rates = _rates(RelativeStepSchedule(warmup_steps=10_000), [0, 999, 9999, 999_999])
    np.testing.assert_allclose(rates, [1e-6, 1e-3, 1e-2, 1e-3], rtol=1e-5)


def test_a_constant_rate_is_constant():
    np.testing.assert_allclose(_rates(ConstantSchedule(peak=0.3), [0, 1, 1000]), 0.3)


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="between 0 and total_steps 10"):
        LinearSchedule(peak=1.0, total_steps=10, warmup_steps=11)
