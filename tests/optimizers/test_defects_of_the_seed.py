"""Six defects of bert4keras 0.11.5's derived optimizers, and that ours have none of them.

Each test also computes, or measures on a control, what the defect gives, so that it is seen to tell the two apart.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_runs import small_task

from trainer.distribution import mirrored_on_cpu
from trainer.optimizers import recipes
from trainer.optimizers.accumulation import GradientAccumulation
from trainer.optimizers.keras_optimizer import KerasOptimizer
from trainer.optimizers.optimizer import Selection, Transformation
from trainer.optimizers.parameters import Parameter, parameters_of
from trainer.optimizers.schedules import ConstantSchedule, LinearSchedule, PiecewiseLinearSchedule
from trainer.optimizers.transformations import BIASES_AND_NORMALIZATIONS, LazyRows, Lookahead

START = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
RATE = 0.1


def constant(rate):
    return ConstantSchedule(peak=rate)


def ours(optimizer):
    return KerasOptimizer(optimizer, jit_compile=False)  # compiling would take most of the time


def trail_of(optimizer, gradients, flush=False):
    """Returns the weights after each microbatch, all from START."""
    variable = keras.Variable(START, name="kernel")
    trail = []
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        trail.append(variable.numpy().copy())
    if flush:
        optimizer.flush()
        trail.append(variable.numpy().copy())
    return trail


def defective_trail(update, gradients, steps):
    """What bert4keras makes of `update(value, gradient, counter)`: it asks before it has seen a gradient whether the
    counter of microbatches is a multiple of `steps`, and only then adds the gradient."""
    value, total, trail = START.astype(np.float64), 0.0, []
    for counter, gradient in enumerate(gradients):
        if counter % steps == 0:
            value, total = update(value, np.broadcast_to(total / steps, START.shape), counter), 0.0
        total = total + gradient
        trail.append(value)
    return trail


def right_trail(update, gradients, steps):
    """The same as it should be: an update for the mean of each window, counted in updates."""
    value, trail = START.astype(np.float64), []
    for number in range(1, len(gradients) + 1):
        if number % steps == 0:
            value = update(value, np.mean(gradients[number - steps : number], axis=0), number // steps - 1)
        trail.append(value)
    return trail


def adam():
    """Returns Adam in float64 as an `update(value, gradient, counter)` that remembers its moments."""
    moments = [0.0, 0.0]

    def update(value, gradient, counter):
        moments[:] = 0.9 * moments[0] + 0.1 * gradient, 0.999 * moments[1] + 0.001 * gradient**2
        first, second = moments[0] / (1 - 0.9 ** (counter + 1)), moments[1] / (1 - 0.999 ** (counter + 1))
        return value - RATE * first / (np.sqrt(second) + 1e-6)

    return update


def random_gradients(number):
    return list(np.random.default_rng(5).normal(size=(number, *START.shape)).astype(np.float32))


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


# 1. Slow weights of Lookahead that start at zero, and are synchronised with at the first step.


@pytest.mark.parametrize("steps", [1, 3])
def test_lookahead_at_a_learning_rate_of_zero_leaves_weights_alone(steps):
    halved = [[0.5, -1.0, 1.5, 0.25]]
    np.testing.assert_array_equal(0 + 0.5 * (START - 0), halved)
    optimizer = ours(recipes.sgd(learning_rate=constant(0.0), transformations=[Lookahead()]))
    trail = trail_of(GradientAccumulation(optimizer, steps=steps), random_gradients(11 * steps))
    assert int(optimizer.iterations) == 11  # two synchronisations, and one more update
    for after in trail:
        np.testing.assert_array_equal(after, START)


def test_lookahead_synchronises_first_after_k_updates_and_with_a_copy_of_the_start():
    optimizer = ours(recipes.sgd(learning_rate=constant(RATE), transformations=[Lookahead(every=3, step_size=0.5)]))
    trail = trail_of(optimizer, [np.ones_like(START)] * 4)
    for after, moved in zip(trail, [1, 2, 1.5, 2.5], strict=True):
        assert_close(after, START - moved * RATE)
    assert abs(trail[0] - 0.5 * (START - RATE)).min() > 0.1  # of zeros, at the first step


def test_lookahead_starts_from_weights_loaded_after_the_optimizer_was_built():
    variable = keras.Variable(np.zeros_like(START), name="kernel")
    optimizer = ours(recipes.sgd(learning_rate=constant(0.0), transformations=[Lookahead(every=1)]))
    optimizer.build([variable])
    variable.assign(START)
    optimizer.apply([tf.zeros(START.shape)], [variable])
    np.testing.assert_array_equal(variable.numpy(), START)


# 2. An update with a zero gradient at microbatch 0, real ones a microbatch late, and a last window that is lost.

FROM_NOTHING = {  # optimizer, and what an update with a gradient of zeros multiplies the weights by
    "adamw": (lambda: ours(recipes.adamw(learning_rate=constant(RATE), weight_decay=0.5)), 0.95),
    "lamb": (lambda: ours(recipes.lamb(learning_rate=constant(RATE))), 0.9),
    "keras adamw": (lambda: keras.optimizers.AdamW(RATE, weight_decay=0.5), 0.95),
}


@pytest.mark.parametrize("name", FROM_NOTHING)
def test_the_first_microbatch_moves_neither_weights_nor_moments(name):
    make, wrong = FROM_NOTHING[name]
    (spurious,) = trail_of(make(), [np.zeros_like(START)])
    assert_close(spurious, wrong * START)

    inner = make()
    trail = trail_of(GradientAccumulation(inner, steps=4), random_gradients(3))
    for after in trail:
        np.testing.assert_array_equal(after, START)
    assert int(inner.iterations) == 0
    moments = [variable for variable in inner.variables if tuple(variable.shape) == START.shape]
    assert len(moments) == 2 and not any(variable.numpy().any() for variable in moments)


def test_an_update_lands_with_the_last_microbatch_of_its_window():
    gradients = random_gradients(6)
    update = lambda value, gradient, counter: value - RATE * gradient
    found = trail_of(GradientAccumulation(keras.optimizers.SGD(RATE), steps=3), gradients)
    assert_close(found, right_trail(update, gradients, 3))
    late = defective_trail(update, gradients, 3)
    np.testing.assert_array_equal(late[2], START)  # when ours has made its first update
    assert abs(found[2] - late[2]).min() > 1e-3
    assert_close(found[2], late[3])


def test_no_window_is_lost_at_the_end():
    gradients = random_gradients(7)  # two windows of three, and one left
    update = lambda value, gradient, counter: value - RATE * gradient
    found = trail_of(GradientAccumulation(keras.optimizers.SGD(RATE), steps=3), gradients, flush=True)
    two_windows = right_trail(update, gradients, 3)[-1]
    assert_close(found[5], two_windows)
    assert abs(found[5] - defective_trail(update, gradients, 3)[5]).min() > 1e-3
    assert_close(found[-1], two_windows - RATE * gradients[6])


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_decay_acts_once_an_update(name):
    make, factor = FROM_NOTHING[name]
    found = trail_of(GradientAccumulation(make(), steps=2), [np.zeros_like(START)] * 6)
    for after, updates in zip(found, [0, 1, 1, 2, 2, 3], strict=True):
        assert_close(after, factor**updates * START)
    wrong = defective_trail(lambda value, gradient, counter: factor * value, [0.0] * 5, 2)[-1]
    assert_close(wrong, factor**3 * START)  # after two windows and a half
    assert abs(found[4] - wrong).min() > 1e-2


# 3. Counters that count microbatches.

ADAMS = {
    "ours": lambda: ours(recipes.adamw(learning_rate=constant(RATE), weight_decay=0.0, clip_norm=None)),
    "keras": lambda: keras.optimizers.Adam(RATE, epsilon=1e-6),
}


@pytest.mark.parametrize("name", ADAMS)
def test_the_first_accumulated_update_of_adam_is_as_long_as_the_learning_rate(name):
    ones = [np.ones_like(START)] * 3
    wrong = defective_trail(adam(), ones, 2)
    np.testing.assert_allclose(START - wrong[2], 0.0639, atol=5e-5)
    found = trail_of(GradientAccumulation(ADAMS[name](), steps=2), ones)
    np.testing.assert_allclose(START - found[1], 0.1, rtol=1e-4)
    np.testing.assert_array_equal(found[2], found[1])


@pytest.mark.parametrize("name", ADAMS)
def test_bias_correction_counts_updates(name):
    gradients = random_gradients(12)
    found = trail_of(GradientAccumulation(ADAMS[name](), steps=3), gradients)
    assert_close(found, right_trail(adam(), gradients, 3))
    assert abs(found[-1] - defective_trail(adam(), [*gradients, 0.0], 3)[-1]).max() > 1e-2


def falling(counter):
    return max(0.0, 1 - counter / 4)


FALLING = {
    "ours": lambda: ours(recipes.sgd(learning_rate=PiecewiseLinearSchedule(peak=1.0, knots={0: 1, 4: 0}))),
    "keras": lambda: keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1.0, 4, 0.0)),
}


@pytest.mark.parametrize("name", FALLING)
def test_schedules_count_updates(name):
    ones = [np.ones_like(START)] * 8
    update = lambda value, gradient, counter: value - falling(counter) * gradient
    found = trail_of(GradientAccumulation(FALLING[name](), steps=2), ones)
    assert_close(found, right_trail(update, ones, 2))
    assert_close(found[-1], START - (1 + 0.75 + 0.5 + 0.25))
    wrong = defective_trail(update, [*ones, 0.0], 2)[-1]
    assert_close(wrong, START - 0.5)  # the rate was 1 for zeros, 0.5 for the first window and 0 from then on


def test_lookahead_counts_updates():
    optimizer = ours(recipes.sgd(learning_rate=constant(RATE), transformations=[Lookahead(every=2, step_size=0.5)]))
    trail = trail_of(GradientAccumulation(optimizer, steps=3), [np.ones_like(START)] * 6)
    for after, moved in zip(trail, [0, 0, 1, 1, 1, 1], strict=True):  # 1 is half the way of two updates
        assert_close(after, START - moved * RATE)
    # Counting microbatches, the third, which completes a window, would not synchronise, but the fourth would.
    assert abs(trail[3] - (START - 0.5 * RATE)).min() > 0.04


# 4. No conditional execution: everything in every microbatch.

INNER = {
    "keras adamw": lambda: keras.optimizers.AdamW(RATE, global_clipnorm=1.0),
    "ours: lamb with lookahead": lambda: KerasOptimizer(
        recipes.lamb(learning_rate=constant(RATE), transformations=[Lookahead()])
    ),
}
STRATEGIES = {  # the strategy, and the operation that a reduction is there
    "one device": (lambda: tf.distribute.OneDeviceStrategy("CPU:0"), None),
    "summed on a device": (lambda: mirrored_on_cpu(["CPU:0", "CPU:1"]), "AddN"),
    "collectives": (lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), "CollectiveReduceV2"),
}
ROOTS = {"Sqrt", "Rsqrt"}  # of second moments and norms: neither the model nor adding gradients has any
TABLE = (50, 3)


class Traced:
    """The graph of a microbatch of a model with an embedding, split into what always runs and what may."""

    def __init__(self, strategy, make):
        with strategy.scope():
            model = keras.Sequential(
                [keras.Input((2,), dtype="int32"), keras.layers.Embedding(*TABLE), keras.layers.Dense(4)]
            )
            optimizer = make()
            optimizer.build(model.trainable_variables)

        def microbatch(ids):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(model(ids)))
            gradients = tape.gradient(loss, model.trainable_variables)
            assert isinstance(gradients[0], tf.IndexedSlices)
            optimizer.apply(gradients, model.trainable_variables)

        step = tf.function(lambda ids: strategy.run(microbatch, args=(ids,)))
        self.graph = step.get_concrete_function(tf.zeros((3, 2), tf.int32)).graph
        definition = self.graph.as_graph_def()
        library = {function.signature.name: function.node_def for function in definition.library.function}
        self.always, self.sometimes = [], []

        def walk(nodes, conditional):
            for node in nodes:
                (self.sometimes if conditional else self.always).append(node.op)
                for value in node.attr.values():
                    for function in [value.func, *value.list.func]:
                        if function.name:
                            walk(library[function.name], conditional or node.op in ("If", "StatelessIf"))

        walk(definition.node, False)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        self.updated = {
            id(copy.handle)
            for variable in (*model.trainable_variables, *inner.variables)
            for copy in strategy.experimental_local_results(variable.value)
        }

    def written_always(self):
        """Returns the operations of the main graph that write to weights or to what the inner optimizer remembers."""
        inside = {placeholder.name: id(outside) for outside, placeholder in self.graph.captures}
        return [
            operation.type
            for operation in self.graph.get_operations()
            if ("Assign" in operation.type or "Scatter" in operation.type or "Apply" in operation.type)
            and operation.inputs
            and inside.get(operation.inputs[0].name) in self.updated
        ]

    def tables_made_always(self):
        """Returns the operations of the main graph that make a tensor of the shape of the embeddings."""
        return [
            operation.type
            for operation in self.graph.get_operations()
            if operation.type != "ReadVariableOp"
            and any(output.shape.rank == 2 and tuple(output.shape) == TABLE for output in operation.outputs)
        ]


@pytest.mark.parametrize("how", STRATEGIES)
@pytest.mark.parametrize("name", INNER)
def test_microbatches_within_a_window_neither_update_nor_reduce(name, how):
    make_strategy, reduction = STRATEGIES[how]
    traced = Traced(make_strategy(), lambda: GradientAccumulation(INNER[name](), steps=4))
    assert "If" in traced.always and not any("Call" in operation for operation in traced.always)
    assert not ROOTS & set(traced.always) and ROOTS & set(traced.sometimes)
    assert traced.written_always() == []
    if reduction is not None:
        assert reduction not in traced.always and reduction in traced.sometimes


@pytest.mark.parametrize("how", STRATEGIES)
@pytest.mark.parametrize("name", INNER)
def test_gradients_of_embeddings_are_added_row_by_row(name, how):
    traced = Traced(STRATEGIES[how][0](), lambda: GradientAccumulation(INNER[name](), steps=4))
    assert traced.always.count("ResourceScatterAdd") == (1 if how == "one device" else 2)  # one a replica
    assert traced.tables_made_always() == []


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("keras adamw", "one device"),
        ("keras adamw", "collectives"),
        ("ours: lamb with lookahead", "summed on a device"),
        ("ours: lamb with lookahead", "collectives"),
    ],
)
def test_without_accumulation_the_same_search_finds_all_of_it_in_every_microbatch(name, how):
    make_strategy, reduction = STRATEGIES[how]
    traced = Traced(make_strategy(), INNER[name])
    assert ROOTS & set(traced.always)
    if reduction is not None:
        assert reduction in traced.always
    assert traced.tables_made_always()
    if name == "keras adamw":  # ours writes in a function that is always called
        assert traced.written_always()


# 5. Patterns that tell upper from lower case.

NAMES = {"MLM-Bias/beta": "bias", "Encoder-Norm/gamma": "normalization", "Encoder/kernel": "kernel"}


@pytest.mark.parametrize(
    "exclude", [None, Selection(patterns=("Norm", "bias"))], ids=["by role", "by the names of the seed"]
)
@pytest.mark.parametrize("recipe", [recipes.adamw, recipes.lamb])
def test_the_bias_of_the_output_neither_decays_nor_is_adapted(recipe, exclude):
    optimizer = recipe(learning_rate=constant(RATE), weight_decay=0.5, exclude=exclude)
    # A role that tells nothing where names are to do it. Of two dimensions, so that only the exclusion can matter.
    parameters = [
        Parameter(name, role if exclude is None else "kernel", None, 0, START.shape) for name, role in NAMES.items()
    ]
    optimizer.check(parameters)

    def after(parameter):
        zeros = {name: tf.zeros(START.shape) for name in optimizer.slots(parameter)}
        value, _ = optimizer.update(
            parameter, START, tf.zeros(START.shape), zeros, updates=tf.constant(1.0), learning_rate=RATE
        )
        return value.numpy()

    bias, scale, kernel = map(after, parameters)
    np.testing.assert_array_equal(bias, START)
    np.testing.assert_array_equal(scale, START)
    assert_close(kernel, (0.95 if recipe is recipes.adamw else 0.9) * START)  # what the defect does to the bias


def test_no_bias_or_normalization_of_the_trainers_model_decays_by_default():
    parameters = parameters_of(small_task(pairs=True).build_model(seed=0, dtype="float32"))
    kept = {parameter.name for parameter in parameters if parameter in BIASES_AND_NORMALIZATIONS}
    assert "pretraining/masked_language_model/output_bias" in kept
    assert kept == {parameter.name for parameter in parameters if len(parameter.shape) == 1}
    # Whoever writes the seed's patterns gets the same where they say the same.
    patterns = Selection(patterns=("NORM", "Bias"))
    patterns.check(parameters)
    assert {parameter.name for parameter in parameters if parameter in patterns} == kept


@pytest.mark.parametrize("known", [True, False], ids=["of a model", "by name"])
def test_biases_of_keras_attention_are_biases(known):
    layer = keras.layers.MultiHeadAttention(2, 4)  # its biases are [heads, size of a head]
    layer.build((None, 3, 8), (None, 3, 8))
    optimizer = KerasOptimizer(recipes.adamw(learning_rate=constant(RATE)), layer if known else None)
    optimizer.build(layer.trainable_variables)
    for parameter in optimizer._parameters:
        assert (parameter in BIASES_AND_NORMALIZATIONS) == parameter.name.endswith("bias"), parameter.name


# 6. Patches of Keras that everybody gets, names that collide, an epsilon of zero that raises.


def everybodys_classes_and_modules():
    """Returns the classes and modules of Keras and TensorFlow through which training goes."""
    strategy = mirrored_on_cpu(["CPU:0", "CPU:1"])
    with strategy.scope():
        mirrored = tf.Variable(0.0)
    classes = [value for value in vars(keras.optimizers).values() if isinstance(value, type)]
    classes += [keras.Variable, tf.Variable, type(tf.Variable(0.0)), type(mirrored), type(strategy)]
    modules = [keras.ops, keras.backend, keras.optimizers, keras.layers, tf, tf.distribute]
    return [*modules, *{each for cls in classes for each in cls.__mro__ if each is not object}]


def contents(owners):
    """Returns all functions and other attributes of classes and modules, and what is registered with Keras."""
    found = {(owner, name): value for owner in owners for name, value in list(vars(owner).items())}
    return found | {("registered", name): value for name, value in keras.saving.get_custom_objects().items()}


def changes(before, after):
    missing = object()
    return [key for key in before.keys() | after.keys() if before.get(key, missing) is not after.get(key, missing)]


def train_two_replicas(optimizer_of_keras, gradients=(1.0, 3.0)):
    """Returns each replica's copy of a variable that was 1, after an update with a gradient of its own on each."""
    strategy = mirrored_on_cpu(["CPU:0", "CPU:1"])
    with strategy.scope():
        variable = keras.Variable(1.0)
        optimizer = optimizer_of_keras()
        optimizer.build([variable])
    own = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(gradients[context.replica_id_in_sync_group])
    )
    strategy.run(lambda gradient: optimizer.apply([gradient], [variable]), args=(own,))
    return [float(copy) for copy in strategy.experimental_local_results(variable.value)]


def test_nothing_that_everybody_shares_is_changed_not_even_during_an_update(monkeypatch):
    owners = everybodys_classes_and_modules()
    before, during = contents(owners), []
    look = lambda: during.append(changes(before, contents(owners)))

    class Looking(Transformation):
        def transform(self, tensor, slots, context):
            look()
            return tensor, slots

    class LookingAdam(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            look()
            super().update_step(gradient, variable, learning_rate)

    for make in (
        lambda: ours(recipes.lamb(learning_rate=constant(RATE), transformations=[Looking(), Lookahead()])),
        lambda: LookingAdam(RATE),
    ):
        trail_of(GradientAccumulation(make(), steps=2), random_gradients(3), flush=True)
        train_two_replicas(lambda make=make: GradientAccumulation(make(), steps=1))
    assert len(during) >= 8 and not any(during)  # two updates of each alone, one on each of two replicas
    assert changes(before, contents(owners)) == []
    from_ours = [
        key for key, value in before.items() if (getattr(value, "__module__", None) or "").startswith("trainer.")
    ]
    assert from_ours and all(owner == "registered" for owner, _ in from_ours)  # nor by importing

    monkeypatch.setattr(keras.Variable, "assign", lambda self, value: None)  # as bert4keras does it
    assert changes(before, contents(owners)) == [(keras.Variable, "assign")]


def test_accumulation_replaces_a_method_of_its_own_optimizer_only():
    inner = keras.optimizers.SGD(RATE)
    GradientAccumulation(inner, steps=2)
    assert "_all_reduce_sum_gradients" in vars(inner)
    assert "_all_reduce_sum_gradients" not in vars(keras.optimizers.SGD(RATE))


def test_an_optimizer_of_keras_made_afterwards_reduces_as_ever():
    GradientAccumulation(keras.optimizers.SGD(RATE), steps=1)
    assert train_two_replicas(lambda: keras.optimizers.SGD(RATE)) == pytest.approx([0.6, 0.6])
    assert train_two_replicas(lambda: GradientAccumulation(keras.optimizers.SGD(RATE), steps=1)) == pytest.approx(
        [0.6, 0.6]
    )

    class Replaced(keras.optimizers.SGD):  # what everybody would get, had it been replaced on the class
        _all_reduce_sum_gradients = staticmethod(list)

    assert train_two_replicas(lambda: Replaced(RATE)) == pytest.approx([0.9, 0.7])


DERIVED = {
    "lamb, lookahead": recipes.lamb(
        learning_rate=LinearSchedule(peak=0.1, total_steps=9), transformations=[Lookahead(every=3)]
    ),
    "adamw, lazy rows": recipes.adamw(learning_rate=constant(RATE), transformations=[LazyRows(moments="freeze")]),
}


def test_optimizers_are_registered_under_names_of_their_own():
    names = [keras.saving.get_registered_name(cls) for cls in (GradientAccumulation, KerasOptimizer)]
    assert names == ["bert_trainer>GradientAccumulation", "bert_trainer>KerasOptimizer"]
    assert keras.saving.get_registered_object(names[0]) is GradientAccumulation
    assert keras.saving.get_registered_object(names[1]) is KerasOptimizer


@pytest.mark.parametrize("accumulates", [False, True])
def test_derived_optimizers_come_back_as_themselves(accumulates):
    written = {}
    for name, optimizer in DERIVED.items():  # all are written before any is read
        made = KerasOptimizer(optimizer)
        made = GradientAccumulation(made, steps=3) if accumulates else made
        written[name] = json.dumps(keras.saving.serialize_keras_object(made))
    for name, optimizer in DERIVED.items():
        read = keras.saving.deserialize_keras_object(json.loads(written[name]))
        assert type(read) is (GradientAccumulation if accumulates else KerasOptimizer)
        found = read.inner_optimizer.optimizer if accumulates else read.optimizer
        assert found == optimizer
        assert all(found != other for other_name, other in DERIVED.items() if other_name != name)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_epsilon_of_zero_is_taken_as_it_is(jit_compile):
    # Where a gradient and its moments are zero, 0 / 0 is not a number, as in the equation.
    optimizer = recipes.adamw(learning_rate=constant(RATE), epsilon=0.0, weight_decay=0.0, clip_norm=None)
    gradients = [np.full_like(START, 1e-12), np.full_like(START, -1e-12)]
    first, second = trail_of(KerasOptimizer(optimizer, jit_compile=jit_compile), gradients)
    np.testing.assert_allclose(START - first, RATE, rtol=1e-4)  # an epsilon of 1e-6 would leave 1e-7 of it
    assert np.isfinite(second).all()
