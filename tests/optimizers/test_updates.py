"""Each optimizer equals its paper's equations, written again in NumPy with float64, and optax where that has it."""

import dataclasses
import os

import keras
import numpy as np
import optax
import pytest
import tensorflow as tf

from trainer.environment import joins_loops
from trainer.optimizers import recipes
from trainer.optimizers.keras_optimizer import KerasOptimizer
from trainer.optimizers.optimizer import Optimizer, Selection
from trainer.optimizers.parameters import Parameter
from trainer.optimizers.rules import AdaFactor, Adam, GradientDescent, orthogonalized
from trainer.optimizers.schedules import ConstantSchedule, LinearSchedule
from trainer.optimizers.transformations import (
    LayerAdaptation,
    LazyRows,
    LearningRateMultipliers,
    Lookahead,
    WeightAverage,
    WeightDecay,
)

STEPS = 20
PARAMETERS = [
    Parameter("model/embeddings/table", "embedding", None, 3, (7, 4)),
    Parameter("model/layer/kernel", "kernel", None, 1, (4, 6)),
    Parameter("model/layer/bias", "bias", None, 1, (6,)),
    Parameter("model/Norm/Scale", "normalization", None, 0, (4,)),
]
DECAYED = ("embedding", "kernel")


def start_and_gradients(steps=STEPS):
    """Returns the first values, and the gradients of each step, all float32."""
    rng = np.random.default_rng(4)
    values = [rng.normal(size=p.shape).astype(np.float32) for p in PARAMETERS]
    return values, [[rng.normal(size=p.shape).astype(np.float32) for p in PARAMETERS] for _ in range(steps)]


def rate_of(step):
    return 0.05 / (1 + step)


class Declining:
    """A rate that changes, so that what it is taken into shows."""

    def __call__(self, step):
        return 0.05 / (1.0 + step)


def run(optimizer, values=None, gradients=None):
    """Returns the values after each step, a list of lists, and the last slots."""
    start, drawn = start_and_gradients()
    values, gradients = values or start, gradients or drawn
    values = [tf.constant(value) for value in values]
    slots = [
        {name: tf.zeros(shape) for name, shape in optimizer.slots(parameter).items()}
        for parameter, value in zip(PARAMETERS, values, strict=True)
    ]
    trail = []
    for step, of_step in enumerate(gradients):
        rate = tf.constant(optimizer.learning_rate(np.float32(step)), tf.float32)
        for i, parameter in enumerate(PARAMETERS):
            assert slots[i].keys() == optimizer.slots(parameter).keys()
            values[i], slots[i] = optimizer.update(
                parameter,
                values[i],
                tf.constant(of_step[i]),
                slots[i],
                updates=tf.constant(step + 1.0),
                learning_rate=rate,
            )
        trail.append([value.numpy() for value in values])
    return trail, slots


def assert_equals(optimizer, reference, rtol=2e-5, atol=2e-6):
    """Compares all steps with `reference(parameter, value, gradients)`, which yields float64 values."""
    values, gradients = start_and_gradients()
    trail, _ = run(optimizer)
    for i, parameter in enumerate(PARAMETERS):
        own = [of_step[i].astype(np.float64) for of_step in gradients]
        expected = list(reference(parameter, values[i].astype(np.float64), own))
        assert len(expected) == STEPS
        for step in range(STEPS):
            message = f"{parameter.name} after step {step}"
            np.testing.assert_allclose(trail[step][i], expected[step], rtol=rtol, atol=atol, err_msg=message)


def rms(x):
    return np.sqrt(np.mean(x**2))


def adam_directions(gradients, beta_1=0.9, beta_2=0.999, epsilon=1e-6):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g * g
        yield m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)


def test_adamw():
    def reference(parameter, x, gradients):
        for t, direction in enumerate(adam_directions(gradients)):
            decay = 0.1 * x if parameter.role in DECAYED else 0.0
            x = x - rate_of(t) * (direction + decay)
            yield x

    assert_equals(recipes.adamw(learning_rate=Declining(), weight_decay=0.1), reference)


def test_momentum_and_nesterov():
    def reference(nesterov):
        def values(parameter, x, gradients):
            v = 0.0
            for t, g in enumerate(gradients):
                v = 0.9 * v + g
                x = x - rate_of(t) * (g + 0.9 * v if nesterov else v)
                yield x

        return values

    for nesterov in (False, True):
        optimizer = recipes.sgd(learning_rate=Declining(), momentum=0.9, nesterov=nesterov)
        assert_equals(optimizer, reference(nesterov))


def test_stable_adamw_scales_rate_and_decay_by_how_far_the_second_moment_is_behind():
    def reference(parameter, x, gradients):
        v = 0.0
        for t, (g, direction) in enumerate(zip(gradients, adam_directions(gradients, 0.9, 0.98), strict=True)):
            v = 0.98 * v + 0.02 * g * g
            surprise = rms(g / np.sqrt(np.maximum(v / (1 - 0.98 ** (t + 1)), 1e-12)))
            rate = rate_of(t) / max(1.0, surprise)
            decay = 0.1 * x if parameter.role in DECAYED else 0.0
            x = x - rate * (direction + decay)
            yield x

    assert_equals(recipes.stable_adamw(learning_rate=Declining(), weight_decay=0.1), reference)


def test_lamb():
    def reference(parameter, x, gradients):
        for t, direction in enumerate(adam_directions(gradients)):
            if parameter.role in DECAYED:
                direction = direction + 0.1 * x
                direction = direction * np.linalg.norm(x) / np.linalg.norm(direction)
            x = x - rate_of(t) * direction
            yield x

    assert_equals(recipes.lamb(learning_rate=Declining(), weight_decay=0.1), reference)
    # It is what its name says it is made of.
    by_hand = Optimizer(
        rule=Adam(),
        learning_rate=Declining(),
        transformations=(WeightDecay(rate=0.1), LayerAdaptation()),
        clip_norm=1.0,
    )
    assert by_hand == recipes.lamb(learning_rate=by_hand.learning_rate, weight_decay=0.1)


def test_layer_adaptation_leaves_zeros_alone_and_clamps():
    zeros = [np.zeros(p.shape, np.float32) for p in PARAMETERS]
    _, gradients = start_and_gradients(1)
    optimizer = Optimizer(
        rule=GradientDescent(), learning_rate=ConstantSchedule(peak=1.0), transformations=(LayerAdaptation(),)
    )
    (after,), _ = run(optimizer, zeros, gradients)
    for new, gradient in zip(after, gradients[0], strict=True):
        np.testing.assert_allclose(new, -gradient)
    values, _ = start_and_gradients()
    (after,), _ = run(optimizer, values, [zeros])
    assert all(np.array_equal(new, old) for new, old in zip(after, values, strict=True))
    clamped = LayerAdaptation(least_ratio=0.5, greatest_ratio=2.0)
    small = [gradient * 1e-3 for gradient in gradients[0]]
    (after,), _ = run(
        Optimizer(rule=GradientDescent(), learning_rate=ConstantSchedule(peak=1.0), transformations=(clamped,)),
        values,
        [small],
    )
    np.testing.assert_allclose(after[1], values[1] - 2.0 * small[1], rtol=1e-6)


def test_lars():
    def reference(parameter, x, gradients):
        v = 0.0
        for t, g in enumerate(gradients):
            local, decay = 1.0, 0.0
            if parameter.role in DECAYED:
                decay = 0.01
                local = 0.02 * np.linalg.norm(x) / (np.linalg.norm(g) + decay * np.linalg.norm(x))
            v = 0.9 * v + rate_of(t) * local * (g + decay * x)
            x = x - v
            yield x

    optimizer = recipes.lars(learning_rate=Declining(), coefficient=0.02, weight_decay=0.01)
    assert_equals(optimizer, reference)


def test_lion():
    def reference(parameter, x, gradients):
        m = 0.0
        for t, g in enumerate(gradients):
            direction = np.sign(0.9 * m + 0.1 * g)
            m = 0.99 * m + 0.01 * g
            decay = 0.1 * x if parameter.role in DECAYED else 0.0
            x = x - rate_of(t) * (direction + decay)
            yield x

    assert_equals(recipes.lion(learning_rate=Declining()), reference)


def test_adafactor():
    def reference(parameter, x, gradients):
        rows = columns = v = 0.0
        for t, g in enumerate(gradients, 1):
            decay = 1 - t**-0.8
            squares = g * g + 1e-30
            if g.ndim == 2:
                rows = decay * rows + (1 - decay) * squares.sum(axis=1, keepdims=True)
                columns = decay * columns + (1 - decay) * squares.sum(axis=0, keepdims=True)
                second = rows @ columns / rows.sum()
            else:
                second = v = decay * v + (1 - decay) * squares
            u = g / np.sqrt(second)
            u = u / max(1.0, rms(u))
            x = x - rate_of(t - 1) * max(1e-3, rms(x)) * u
            yield x

    assert_equals(recipes.adafactor(learning_rate=Declining()), reference)
    slots = AdaFactor().slots(PARAMETERS[1])
    assert slots == {"row_velocity": (4,), "column_velocity": (6,)}


def test_muon():
    def iterated(matrix):
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / (np.linalg.norm(x) + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.T if tall else x

    def reference(parameter, x, gradients):
        m = 0.0
        for t, (g, adam) in enumerate(zip(gradients, adam_directions(gradients, 0.9, 0.95, 1e-8), strict=True)):
            direction = adam
            if parameter.role == "kernel":
                m = 0.95 * m + 0.05 * g
                direction = 0.2 * np.sqrt(max(x.shape)) * iterated(0.95 * m + 0.05 * g)
            decay = 0.1 * x if parameter.role in DECAYED else 0.0
            x = x - rate_of(t) * (direction + decay)
            yield x

    assert_equals(recipes.muon(learning_rate=Declining()), reference, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (8, 8)])
def test_orthogonalized_has_singular_values_near_one(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    singular = np.linalg.svd(orthogonalized(tf.constant(matrix)).numpy(), compute_uv=False)
    assert singular.min() > 0.5 and singular.max() < 1.3


def optax_trail(transformation):
    """The values after each step of an optax optimizer."""
    values, gradients = start_and_gradients()
    state = transformation.init(values)
    for of_step in gradients:
        updates, state = transformation.update(of_step, state, values)
        values = optax.apply_updates(values, updates)
        yield [np.array(value) for value in values]


def kernels_only(values):
    return [parameter.role in DECAYED for parameter in PARAMETERS]


def own_rate(count):
    return 0.05 / (1 + count)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            recipes.adamw(learning_rate=Declining()),
            optax.adamw(own_rate, eps=1e-6, weight_decay=0.01, mask=kernels_only),
        ),
        (
            recipes.lion(learning_rate=Declining(), weight_decay=0.3),
            optax.lion(own_rate, weight_decay=0.3, mask=kernels_only),
        ),
        (
            recipes.lamb(learning_rate=Declining(), weight_decay=0.1, exclude=Selection()),
            optax.lamb(own_rate, eps=1e-6, weight_decay=0.1),
        ),
        (
            recipes.adafactor(learning_rate=Declining()),
            optax.adafactor(
                own_rate, min_dim_size_to_factor=2, multiply_by_parameter_scale=True, clipping_threshold=1.0
            ),
        ),
    ],
    ids=["adamw", "lion", "lamb", "adafactor"],
)
def test_optax_agrees(ours, theirs):
    trail, _ = run(ours)
    for step, expected in enumerate(optax_trail(theirs)):
        for parameter, own, other in zip(PARAMETERS, trail[step], expected, strict=True):
            np.testing.assert_allclose(own, other, rtol=5e-5, atol=5e-6, err_msg=f"{parameter.name}, step {step}")


def test_lookahead_starts_as_a_copy_and_synchronises_after_k_updates():
    plain, _ = run(recipes.adamw(learning_rate=Declining()))
    ahead, slots = run(recipes.adamw(learning_rate=Declining(), transformations=(Lookahead(every=3, step_size=0.4),)))
    start, _ = start_and_gradients()
    for i in range(len(PARAMETERS)):
        np.testing.assert_array_equal(ahead[0][i], plain[0][i])  # nothing happens before the third update
        np.testing.assert_array_equal(ahead[1][i], plain[1][i])
        np.testing.assert_allclose(ahead[2][i], start[i] + 0.4 * (plain[2][i] - start[i]), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(slots[i]["lookahead/slow"], ahead[17][i])  # 18 is the last multiple of 3 below 20
    still, _ = run(Optimizer(rule=GradientDescent(), learning_rate=lambda step: 0.0, transformations=(Lookahead(),)))
    for after in still:
        assert all(np.array_equal(new, old) for new, old in zip(after, start, strict=True))


def test_averages_are_corrected_for_their_start():
    optimizer = recipes.adamw(learning_rate=Declining(), transformations=(WeightAverage(momentum=0.9),))
    trail, slots = run(optimizer)
    weights = 0.9 ** np.arange(STEPS - 1, -1, -1)
    for i, parameter in enumerate(PARAMETERS):
        expected = (
            sum(w * values[i].astype(np.float64) for w, values in zip(weights, trail, strict=True)) / weights.sum()
        )
        found = optimizer.evaluation_value(
            parameter, tf.constant(trail[-1][i]), slots[i], updates=tf.constant(float(STEPS))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    first = optimizer.evaluation_value(PARAMETERS[0], tf.constant(1.0), {"weight_average/average": 0.0}, updates=0.0)
    assert float(first) == 1.0
    assert optimizer.evaluates_other_values
    assert not recipes.adamw(learning_rate=Declining()).evaluates_other_values


@pytest.mark.parametrize("moments", ["move", "freeze"])
def test_rows_without_a_gradient_stay(moments):
    values, gradients = start_and_gradients()
    for step, of_step in enumerate(gradients):
        of_step[0][np.arange(7) % 2 == step % 2] = 0
    lazy = LazyRows(moments=moments)
    optimizer = recipes.adamw(learning_rate=Declining(), weight_decay=0.1, transformations=(lazy,))
    eager = recipes.adamw(learning_rate=Declining(), weight_decay=0.1)
    trail, slots = run(optimizer, values, gradients)
    plain, plain_slots = run(eager, values, gradients)
    for i in range(1, len(PARAMETERS)):
        np.testing.assert_array_equal(trail[-1][i], plain[-1][i])
    still = np.arange(7) % 2 == 0
    np.testing.assert_array_equal(trail[0][0][still], values[0][still])
    assert (trail[0][0][~still] != values[0][~still]).all()
    np.testing.assert_array_equal(trail[1][0][~still], trail[0][0][~still])
    same = np.array_equal(slots[0]["momentum"], plain_slots[0]["momentum"])
    assert same == (moments == "move")
    if moments == "freeze":  # as if the rows had been updated every other step, but for the correction of the bias
        m = np.zeros((7, 4))
        for of_step in gradients:
            moved = (of_step[0] != 0).any(axis=1, keepdims=True)
            m = np.where(moved, 0.9 * m + 0.1 * of_step[0], m)
        np.testing.assert_allclose(slots[0]["momentum"], m, rtol=1e-5, atol=1e-6)


def test_multipliers_go_by_name_and_depth():
    multipliers = LearningRateMultipliers(factors={"KERNEL": 2.0, "layer": 3.0}, depth_decay=0.5)
    assert [multipliers.factor(parameter) for parameter in PARAMETERS] == [0.125, 3.0, 1.5, 1.0]
    values, gradients = start_and_gradients(1)
    plain, _ = run(recipes.lamb(learning_rate=Declining()), values, gradients)
    scaled, _ = run(recipes.lamb(learning_rate=Declining(), transformations=(multipliers,)), values, gradients)
    for i, factor in enumerate([0.125, 3.0, 1.5, 1.0]):
        np.testing.assert_allclose(scaled[0][i] - values[i], factor * (plain[0][i] - values[i]), rtol=1e-3, atol=1e-6)


def test_exclusion_by_name_ignores_case_and_must_match_something():
    decay = WeightDecay(rate=1.0, exclude=Selection(patterns=("norm", "BIAS", "table")))
    optimizer = Optimizer(rule=GradientDescent(), learning_rate=ConstantSchedule(peak=0.5), transformations=(decay,))
    optimizer.check(PARAMETERS)
    values, _ = start_and_gradients()
    zeros = [np.zeros(p.shape, np.float32) for p in PARAMETERS]
    (after,), _ = run(optimizer, values, [zeros])
    changed = [not np.array_equal(new, old) for new, old in zip(after, values, strict=True)]
    assert changed == [False, True, False, False]
    for wrong in (
        WeightDecay(exclude=Selection(patterns=("LayerNorm",))),
        LayerAdaptation(exclude=Selection(patterns=("gamma",))),
        LazyRows(include=Selection(patterns=("words",))),
        LearningRateMultipliers(factors={"head": 2.0}),
    ):
        broken = Optimizer(rule=Adam(), learning_rate=Declining(), transformations=(wrong,))
        with pytest.raises(ValueError, match=r"no parameter has .* in its name; names are like model/embeddings/table"):
            broken.check(PARAMETERS)


@pytest.mark.parametrize(
    "ours",
    [
        recipes.lamb(learning_rate=LinearSchedule(peak=0.1, total_steps=30), transformations=(Lookahead(every=3),)),
        recipes.adafactor(learning_rate=ConstantSchedule(peak=0.1)),
        recipes.muon(learning_rate=ConstantSchedule(peak=0.1), transformations=(LazyRows(), WeightAverage())),
    ],
    ids=["lamb with lookahead", "adafactor", "muon, lazy rows, average"],
)
def test_as_a_keras_optimizer_it_does_the_same(ours):
    ours = dataclasses.replace(ours, clip_norm=None)  # clipping is tested where gradients are reduced
    expected, expected_slots = run(ours)
    values, gradients = start_and_gradients()
    names = ("embeddings", "kernel", "bias", "gamma")
    variables = [keras.Variable(value, name=name) for value, name in zip(values, names, strict=True)]
    optimizer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(KerasOptimizer(ours)))
    assert optimizer.optimizer == ours
    step = tf.function(lambda each: optimizer.apply(each, variables))
    optimizer.build(variables)
    for of_step in gradients:
        step([tf.constant(gradient) for gradient in of_step])
    for variable, value in zip(variables, expected[-1], strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)
    for found, slots in zip(optimizer._slots, expected_slots, strict=True):
        assert found.keys() == slots.keys()
        for name, slot in slots.items():
            np.testing.assert_allclose(found[name].numpy(), slot, rtol=1e-4, atol=1e-6, err_msg=name)


ELEMENTWISE = {
    "adamw": recipes.adamw(learning_rate=Declining(), weight_decay=0.1),
    "momentum": recipes.sgd(learning_rate=Declining(), momentum=0.9, nesterov=True),
    "lion, average, lookahead": recipes.lion(
        learning_rate=Declining(),
        transformations=(LearningRateMultipliers(factors={"bias": 2.0}), Lookahead(every=2), WeightAverage()),
    ),
}


@pytest.mark.skipif(not joins_loops(os.environ), reason="XLA was not told to join loops, or is too old to")
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_written_for_one_pass_over_memory_an_update_is_the_same_and_xla_makes_one_loop_of_it(name):
    optimizer = ELEMENTWISE[name]
    assert optimizer.elementwise
    parameter = Parameter("kernel", "kernel", None, 0, (300, 400))
    rng = np.random.default_rng(0)

    def draw():
        return tf.constant(rng.normal(size=parameter.shape).astype(np.float32))

    slots = {slot: tf.abs(draw()) for slot in optimizer.slots(parameter)}

    def update(value, gradient, scale, slots, in_one_pass):
        return optimizer.update(
            parameter,
            value,
            gradient,
            slots,
            updates=tf.constant(3.0) + scale - scale,
            learning_rate=scale,
            scale=scale,
            in_one_pass=in_one_pass,
        )

    arguments = (draw(), draw(), tf.constant(0.5), slots)
    plain_value, plain_slots = update(*arguments, in_one_pass=False)
    compiled = tf.function(lambda *all: update(*all, in_one_pass=True), jit_compile=True, autograph=False)
    value, new_slots = compiled(*arguments)
    np.testing.assert_allclose(value, plain_value, rtol=1e-5, atol=1e-6)
    for slot, expected in plain_slots.items():
        np.testing.assert_allclose(new_slots[slot], expected, rtol=1e-5, atol=1e-6)
    program = compiled.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
    loops = [line.partition(" fusion(")[0] for line in program.splitlines() if " fusion(" in line]
    (together,) = [line for line in loops if "f32[300,400]" in line]
    assert together.count("f32[300,400]") == 1 + len(slots)


def test_what_is_not_elementwise_says_so():
    for optimizer in (
        recipes.lamb(learning_rate=Declining()),
        recipes.stable_adamw(learning_rate=Declining()),
        recipes.adamw(learning_rate=Declining(), transformations=(LazyRows(),)),
    ):
        assert not optimizer.elementwise


def test_replicas_clip_what_they_reduced():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        variable = keras.Variable(np.zeros(2, np.float32), name="kernel")
        optimizer = KerasOptimizer(recipes.sgd(learning_rate=ConstantSchedule(peak=1.0), clip_norm=1.0))
        optimizer.build([variable])
    parts = iter([[3.0, 0.0], [0.0, 4.0]])
    gradients = strategy.experimental_distribute_values_from_function(lambda _: tf.constant(next(parts)))
    strategy.run(tf.function(lambda gradient: optimizer.apply([gradient], [variable])), args=(gradients,))
    np.testing.assert_allclose(variable.numpy(), [-0.6, -0.8], rtol=1e-6)  # each clipped alone: [-1, -1]


class Table(keras.layers.Layer):
    """An embedding whose variable has a name of its own, at the bottom of a model with depths."""

    depth = 0

    def build(self, input_shape=None):
        self.embeddings = self.add_weight(shape=(4, 2), name="words")


def test_roles_and_depths_of_a_model_are_part_of_the_configuration():
    table = Table()
    table.build()
    by_depth = LearningRateMultipliers(depth_decay=0.5)
    layerwise = recipes.adamw(learning_rate=ConstantSchedule(peak=0.1), transformations=(by_depth,))
    optimizer = KerasOptimizer(layerwise, table)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    again.build(table.trainable_variables)
    (parameter,) = again._parameters
    assert (parameter.role, parameter.layers_above) == ("embedding", 1)
    with pytest.raises(ValueError, match="has no variable other"):
        KerasOptimizer(layerwise, table).build([keras.Variable(np.ones((2, 2), np.float32), name="other")])


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="order of their stages"):
        Optimizer(rule=Adam(), learning_rate=Declining(), transformations=(Lookahead(), WeightDecay()))
    for twice in (Lookahead(), WeightDecay()):
        with pytest.raises(ValueError, match="stands twice"):
            Optimizer(rule=Adam(), learning_rate=Declining(), transformations=(twice, twice))
    with pytest.raises(ValueError, match="two transformations scale by trust ratios"):
        recipes.lars(learning_rate=Declining(), transformations=(LayerAdaptation(),)).check(PARAMETERS)
    with pytest.raises(ValueError, match=r"such as ConstantSchedule\(peak=0.1\)"):
        recipes.adamw(learning_rate=0.1)
    with pytest.raises(ValueError, match="an optimizer of trainer"):
        KerasOptimizer("adam")
    with pytest.raises(ValueError, match="cannot be written to a configuration"):
        KerasOptimizer(recipes.adamw(learning_rate=lambda step: 0.1)).get_config()
    with pytest.raises(ValueError, match="roles are kernel, bias"):
        Selection(roles="biases")
    with pytest.raises(ValueError, match="no regular expression"):
        Selection(patterns="(")
    with pytest.raises(ValueError, match="beta_1 must lie in"):
        Adam(beta_1=1.0)
    with pytest.raises(ValueError, match="clip_norm must be positive"):
        recipes.adamw(learning_rate=Declining(), clip_norm=0.0)
