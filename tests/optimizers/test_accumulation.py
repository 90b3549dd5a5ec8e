"""GradientAccumulation: the weights of one large batch, under every strategy, in fit and in loops of one's own."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from large_batches import (
    FEATURES,
    OPTIMIZERS,
    ROWS,
    Loop,
    assert_same,
    data,
    large_batches,
    make_model,
    scope_of,
    split,
    strategy_of,
    weights_of,
)

from trainer.optimizers.accumulation import GradientAccumulation
from trainer.optimizers.fitting import CountsExamples


def number(variable):
    return float(keras.ops.convert_to_numpy(variable))


@pytest.mark.parametrize("replicas", [0, 2])
def test_it_works_eagerly(replicas):
    make = OPTIMIZERS["keras adamw"]
    loop = Loop(replicas, lambda: GradientAccumulation(make(), steps=4 // max(1, replicas), reduction="weighted"))
    loop.run(split(*data(3), (5, 1, 7, 3), loop.replicas), eagerly=True)
    assert_same(loop.weights(), large_batches(make, 3))


@pytest.mark.parametrize("one_program", [False, True])
def test_xla_compiles_it_also_in_the_form_that_tpus_get(one_program, monkeypatch):
    monkeypatch.setattr("trainer.optimizers.accumulation._is_one_program", lambda strategy: one_program)
    make = OPTIMIZERS["keras adamw"]
    loop = Loop(0, lambda: GradientAccumulation(make(), steps=4, reduction="weighted"))
    loop.graph_step = tf.function(loop.microbatch, jit_compile=True)
    loop.run(split(*data(4), (4, 4, 4, 4), 1))
    assert_same(loop.weights(), large_batches(make, 4))


def test_in_the_form_that_tpus_get_rows_of_embeddings_are_added_without_scattering(monkeypatch):
    # A TPU's variable of which each replica has its own has no scatter_add.
    monkeypatch.setattr("trainer.optimizers.accumulation._is_one_program", lambda strategy: True)
    table = keras.layers.Embedding(6, 3, embeddings_initializer="ones")
    table.build()
    optimizer = GradientAccumulation(keras.optimizers.SGD(0.5), steps=2)
    optimizer.build(table.trainable_variables)

    @tf.function(jit_compile=True)
    def microbatch(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(table(ids))
        optimizer.apply(tape.gradient(loss, table.trainable_variables), table.trainable_variables)

    microbatch(tf.constant([1, 1, 2]))
    microbatch(tf.constant([1, 0, 2]))
    np.testing.assert_array_equal(table.embeddings.numpy()[:, 0], [0.75, 0.25, 0.5, 1, 1, 1])
    graph = microbatch.get_concrete_function(tf.constant([1, 1, 2])).graph.as_graph_def()
    assert not [node for node in graph.node if node.op == "ResourceScatterAdd"]


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_fit_gives_the_weights_of_large_batches(replicas):
    x, y = data()
    expected = make_model()
    expected.compile(OPTIMIZERS["keras adamw"](), "mse")
    expected.fit(x, y, batch_size=ROWS, epochs=2, shuffle=False, verbose=0)
    with scope_of(strategy_of(replicas)):
        model = make_model()
        model.compile(GradientAccumulation(OPTIMIZERS["keras adamw"](), steps=4), "mse")
    model.fit(x, y, batch_size=ROWS // 4, epochs=2, shuffle=False, verbose=0)
    assert_same(model.get_weights(), expected.get_weights())


def test_what_keras_itself_does_raises_under_mirrored_strategy():
    x, y = data()
    with strategy_of(2).scope():
        model = make_model()
        model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), "mse")
    with pytest.raises(RuntimeError, match="merge_call"):
        model.fit(x, y, batch_size=4, verbose=0)


def test_fit_with_counted_examples_weighs_the_last_batch_by_its_size():
    class Model(CountsExamples, keras.Model):
        pass

    x, y = data()
    x, y = x[:15], y[:15]  # batches of 4, 4, 4 and 3
    for replicas in (0, 2):
        with scope_of(strategy_of(replicas)):
            model = make_model(Model)
            model.compile(
                GradientAccumulation(keras.optimizers.SGD(0.1), steps=4, reduction="weighted"),
                keras.losses.MeanSquaredError(reduction="sum"),
            )
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        model.evaluate(x, y, batch_size=4, verbose=0)  # counts nothing
        expected = make_model()
        expected.compile(keras.optimizers.SGD(0.1), "mse")
        expected.fit(x, y, batch_size=15, shuffle=False, verbose=0)
        assert_same(model.get_weights(), expected.get_weights())


@pytest.mark.parametrize("replicas", [0, 2])
def test_fit_with_counted_examples_regularizes_once_an_update(replicas):
    def regularized(base=keras.Model):
        keras.utils.set_random_seed(5)
        inputs = keras.Input((FEATURES,))
        return base(inputs, keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.5))(inputs))

    class Model(CountsExamples, keras.Model):
        pass

    x, y = data(2)
    expected = regularized()
    expected.compile(keras.optimizers.SGD(0.1), "mse")
    expected.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0)
    with scope_of(strategy_of(replicas)):
        model = regularized(Model)
        optimizer = GradientAccumulation(keras.optimizers.SGD(0.1), steps=4, reduction="weighted")
        model.compile(optimizer, keras.losses.MeanSquaredError(reduction="sum"))
    model.fit(x, y, batch_size=ROWS // 4, shuffle=False, verbose=0)
    assert_same(model.get_weights(), expected.get_weights())


def test_counted_examples_refuse_what_they_cannot_count():
    class Model(CountsExamples, keras.Model):
        pass

    def fit(optimizer, loss, sample_weight=None):
        model = make_model(Model)
        model.compile(optimizer, loss)
        model.fit(*data(1), sample_weight=sample_weight, verbose=0)

    weighted = lambda: GradientAccumulation(keras.optimizers.SGD(0.1), reduction="weighted")
    with pytest.raises(ValueError, match="losses must be sums"):
        fit(weighted(), "mse")
    with pytest.raises(ValueError, match="losses must be sums"):
        fit(weighted(), keras.losses.MeanSquaredError())
    with pytest.raises(ValueError, match="was compiled with SGD"):
        fit(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError(reduction="sum"))
    inputs = keras.Input((4,), dtype="int32")
    masked = Model(inputs, keras.layers.Embedding(6, 1, mask_zero=True)(inputs))
    masked.compile(weighted(), keras.losses.MeanSquaredError(reduction="sum"))
    with pytest.raises(ValueError, match="outputs with a mask"):
        masked.fit(np.ones((4, 4), np.int32), np.ones((4, 4, 1), np.float32), verbose=0)


@pytest.mark.parametrize("replicas", [0, 2])
def test_an_incomplete_window_is_applied_at_the_end_of_fit_with_its_true_weight(replicas):
    x, y = data(1)
    with scope_of(strategy_of(replicas)):
        model = make_model()
        model.compile(GradientAccumulation(keras.optimizers.SGD(0.1), steps=100), "mse")
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    expected = large_batches(lambda: keras.optimizers.SGD(0.1), 1)
    assert_same(model.get_weights(), expected)
    model.optimizer.flush()  # nothing is left
    assert_same(model.get_weights(), expected)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 1


@pytest.mark.parametrize("replicas", [0, 2])
def test_a_window_that_is_not_finite_on_one_replica_changes_nothing_anywhere(replicas):
    steps = 4 // max(1, replicas)
    loop = Loop(
        replicas, lambda: GradientAccumulation(OPTIMIZERS["keras momentum"](), steps=steps, reduction="weighted")
    )
    x, y = data(3)
    before = loop.weights()
    broken = x.copy()
    broken[ROWS - 1, 0] = np.inf  # the last row of the first window, so of the last replica
    loop.run(split(broken[:ROWS], y[:ROWS], (5, 1, 7, 3), loop.replicas))
    assert all(np.array_equal(new, old) for new, old in zip(loop.weights(), before, strict=True))
    assert int(keras.ops.convert_to_numpy(loop.optimizer.skipped)) == 1
    assert int(keras.ops.convert_to_numpy(loop.optimizer.iterations)) == 0
    # It goes on as if the window had not been.
    loop.run(split(x, y, (5, 1, 7, 3), loop.replicas))
    assert_same(loop.weights(), large_batches(OPTIMIZERS["keras momentum"], 3))
    for variable in loop.model.trainable_variables:
        copies = variable.value.values if replicas else [variable.value]
        assert all(np.array_equal(copies[0], copy) for copy in copies)


@pytest.mark.parametrize(
    ("weight", "gradient", "dtype"),
    [(np.inf, 1.0, "float32"), (np.nan, 1.0, "float32"), (0.0, 1.0, "float32"), (1.0, 1e5, "float16")],
    ids=["infinite weight", "weight not a number", "no weight", "gradient too large for its variable"],
)
def test_what_is_not_finite_only_after_dividing_is_left_out_too(weight, gradient, dtype):
    variable = keras.Variable(np.ones(2), dtype=dtype, name="kernel")
    optimizer = GradientAccumulation(keras.optimizers.AdamW(0.1, weight_decay=0.5), steps=1, reduction="weighted")
    optimizer.build([variable])
    optimizer.count(weight)
    optimizer.apply([tf.constant([gradient, gradient])], [variable])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), [1, 1])
    assert number(optimizer.skipped) == 1 and number(optimizer.iterations) == 0


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_checkpoint_in_mid_window_goes_on_on_any_number_of_replicas(after, tmp_path):
    make = OPTIMIZERS["keras momentum"]
    x, y = data(2)
    begun = Loop(2, lambda: GradientAccumulation(make(), steps=2, reduction="weighted"))
    pieces = split(x, y, (5, 1, 7, 3), 2)
    begun.run(pieces[:3])  # one window and a half
    path = tf.train.Checkpoint(model=begun.model, optimizer=begun.optimizer).save(str(tmp_path / "mid"))

    replicas = max(1, after)
    rest = 8 // replicas  # of the microbatches, so that any window ends with the data
    resumed = Loop(after, lambda: GradientAccumulation(make(), steps=rest, reduction="weighted"))
    tf.train.Checkpoint(model=resumed.model, optimizer=resumed.optimizer).restore(path).assert_consumed()
    left = pieces[3]
    if replicas == 1:
        resumed.run([[piece] for piece in left])
    elif replicas == 2:
        resumed.run([left])
    else:
        nothing = (x[:0], y[:0])
        resumed.run([[*left, nothing, nothing]])
    resumed.optimizer.flush()
    assert_same(resumed.weights(), large_batches(make, 2))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_saved_keras_files_keep_the_window(before, after, tmp_path):
    x, y = data(1)
    with scope_of(strategy_of(before)):
        model = make_model()
        model.compile(GradientAccumulation(OPTIMIZERS["keras adamw"](), steps=4), "mse")
    for i in range(0, 8, 4):
        model.train_on_batch(x[i : i + 4], y[i : i + 4])
    model.save(tmp_path / "model.keras")
    with scope_of(strategy_of(after)):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, GradientAccumulation) and loaded.optimizer.steps == 4
    for i in range(8, 16, 4):
        loaded.train_on_batch(x[i : i + 4], y[i : i + 4])
    assert_same(loaded.get_weights(), large_batches(OPTIMIZERS["keras adamw"], 1))


@keras.saving.register_keras_serializable(package="tests")
def one_then_two(updates):
    return tf.where(updates < 1, 1, 2)


@pytest.mark.parametrize("replicas", [0, 2])
def test_windows_may_grow(replicas):
    make = lambda: GradientAccumulation(keras.optimizers.SGD(0.1), steps=one_then_two, reduction="weighted")
    loop = Loop(replicas, lambda: keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(make())))
    x, y = data(2)
    sizes = (ROWS, ROWS) if replicas else (2 * ROWS,)
    for _ in range(3):
        loop.run(split(x, y, sizes, loop.replicas))
        loop.run(split(x, y, sizes, loop.replicas))
    expected, seen = make_model(), []
    for _ in range(3):  # one window of one microbatch, two of two, and one microbatch that waits
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(expected(x) - y))
        for gradient, variable in zip(tape.gradient(loss, expected.weights), expected.weights, strict=True):
            variable.assign_sub(0.1 * gradient)
        seen.append(weights_of(expected))
    assert number(loop.optimizer.iterations) == 3
    assert_same(loop.weights(), seen[-1])


@pytest.mark.parametrize("replicas", [0, 2])
def test_sparse_gradients_are_accumulated(replicas):
    ids = np.array([[1, 2], [3, 3], [0, 1], [4, 2]], np.int32)

    def make():
        keras.utils.set_random_seed(3)
        return keras.Sequential(
            [keras.Input((2,), dtype="int32"), keras.layers.Embedding(6, 3), keras.layers.Flatten()]
        )

    results = []
    for accumulates in (True, False):
        strategy = strategy_of(replicas if accumulates else 0)
        with scope_of(strategy):
            model = make()
            optimizer = keras.optimizers.SGD(0.5)
            if accumulates:
                optimizer = GradientAccumulation(optimizer, steps=4 // max(1, replicas), reduction="weighted")
            optimizer.build(model.trainable_variables)

        def step(rows, accumulates=accumulates, model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(rows) ** 2) / (1.0 if accumulates else 4.0)
            gradients = tape.gradient(loss, model.trainable_variables)
            if accumulates:
                assert isinstance(gradients[0], tf.IndexedSlices)
                optimizer.count(tf.shape(rows)[0])
            optimizer.apply([gradients[0] if accumulates else tf.convert_to_tensor(gradients[0])])

        if not accumulates:
            step(tf.constant(ids))
        elif strategy is None:
            for row in ids:
                tf.function(step)(tf.constant(row[None]))
        else:
            for i in (0, 2):
                rows = strategy.experimental_distribute_values_from_function(
                    lambda context, i=i: tf.constant(ids[i + context.replica_id_in_sync_group][None])
                )
                strategy.run(tf.function(step), args=(rows,))
        results.append([np.array(keras.ops.convert_to_numpy(model.trainable_variables[0]))])
    assert_same(*results)


@pytest.mark.parametrize("replicas", [0, 2])
def test_variables_without_any_gradient_are_left_alone(replicas):
    with scope_of(strategy_of(replicas)):
        model, unused = make_model(), keras.Variable(np.ones(3, np.float32), name="unused")
        variables = [*model.trainable_variables, unused]
        optimizer = GradientAccumulation(keras.optimizers.AdamW(0.1, weight_decay=0.5), steps=2)
        optimizer.build(variables)

    def microbatch(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x) ** 2)
        optimizer.apply(tape.gradient(loss, variables), variables)

    before = model.get_weights()
    for _ in range(4):
        run = model.distribute_strategy.run if replicas else lambda function, args: function(*args)
        run(tf.function(microbatch), args=(tf.ones((2, FEATURES)),))
    np.testing.assert_array_equal(unused.numpy(), np.ones(3))
    assert all((new != old).any() for new, old in zip(model.get_weights(), before, strict=True))
    with pytest.raises(ValueError, match="gradient of no variable"):
        optimizer.apply([None] * len(variables), variables)


def test_gradients_of_variables_that_the_end_of_a_window_does_not_know_are_an_error():
    first, second = (keras.Variable(np.ones(3, np.float32), name=name) for name in ("first", "second"))
    optimizer = GradientAccumulation(keras.optimizers.SGD(0.1), steps=2)
    optimizer.build([first, second])
    one = tf.function(lambda: optimizer.apply([tf.ones(3), None], [first, second]))
    other = tf.function(lambda: optimizer.apply([None, tf.ones(3)], [first, second]))
    one()
    one()  # a window
    np.testing.assert_allclose(first.numpy(), 0.9)
    one()
    other()  # knows of both
    np.testing.assert_allclose([first.numpy(), second.numpy()], [[0.85] * 3, [0.95] * 3])
    other()
    with pytest.raises(tf.errors.InvalidArgumentError, match="give zeros instead of None for second"):
        one()


def collectives(steps):
    """Reductions in a microbatch's graph and in what it calls, such as conditions, of a strategy where they show."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = make_model()
        optimizer = GradientAccumulation(keras.optimizers.AdamW(0.01), steps=steps)
        optimizer.build(model.trainable_variables)

    def microbatch(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables))

    @tf.function
    def step(x):
        strategy.run(microbatch, args=(x,))

    graph = step.get_concrete_function(tf.zeros((2, FEATURES))).graph.as_graph_def()
    inside = [node for function in graph.library.function for node in function.node_def]
    return [[node.name for node in nodes if node.op.startswith("CollectiveReduce")] for nodes in (graph.node, inside)]


def test_replicas_are_reduced_once_a_window_and_only_there():
    for steps in (1, 8):
        always, at_the_end = collectives(steps)
        assert always == []
        assert len(at_the_end) == 2  # one a replica: all gradients travel together


@contextlib.contextmanager
def dtype_policy(name):
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", ["keras sgd", "lamb"])
@pytest.mark.parametrize("replicas", [0, 2])
def test_float16_scales_the_loss_inside(replicas, name):
    with scope_of(strategy_of(replicas)), dtype_policy("mixed_float16"):
        model = make_model()
        scaled = keras.optimizers.LossScaleOptimizer(OPTIMIZERS[name](), initial_scale=2.0**30)
        optimizer = GradientAccumulation(scaled, steps=4)
        model.compile(optimizer, "mse", auto_scale_loss=False)
    model.fit(*data(2), batch_size=4, epochs=20, shuffle=False, verbose=0)
    assert number(scaled.dynamic_scale) < 2.0**30  # windows that overflowed lowered it
    assert 0 < number(optimizer.iterations) < 40
    assert number(optimizer.iterations) + number(optimizer.skipped) == 40
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_gradients_of_low_precision_are_summed_in_float32():
    variable = keras.Variable(np.zeros(3), dtype="bfloat16", name="kernel")
    optimizer = GradientAccumulation(keras.optimizers.SGD(1.0), steps=300)
    optimizer.build([variable])
    microbatch = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
    for _ in range(300):
        microbatch(tf.constant([1.0, 1 / 256, -1.0], tf.bfloat16))
    # A sum of ones in bfloat16 would stop at 256, and the mean be 0.85.
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")), [-1, -1 / 256, 1])


def test_it_remembers_one_copy_of_the_gradients_and_five_numbers():
    model, inner = make_model(), keras.optimizers.AdamW(0.1)
    optimizer = GradientAccumulation(inner, steps=4)
    optimizer.build(model.trainable_variables)
    inside = {id(variable) for variable in inner.variables}
    own = [variable for variable in optimizer.variables if id(variable) not in inside]
    sums = [variable for variable in own if variable.shape != ()]
    assert [variable.shape for variable in sums] == [variable.shape for variable in model.trainable_variables]
    assert {variable.dtype for variable in sums} == {"float32"}
    assert len(own) - len(sums) == 5  # weight, microbatches in all and in the window, skipped; a learning rate of Keras


def test_loss_scaling_outside_is_refused():
    with pytest.raises(ValueError, match="LossScaleOptimizer must be inside"):
        keras.optimizers.LossScaleOptimizer(GradientAccumulation(keras.optimizers.SGD(0.1), steps=2))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        GradientAccumulation(keras.optimizers.SGD(0.1), steps=0)
    with pytest.raises(ValueError, match="mean, weighted"):
        GradientAccumulation(keras.optimizers.SGD(0.1), reduction="sum")
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        GradientAccumulation(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match="multiply their steps"):
        GradientAccumulation(GradientAccumulation(keras.optimizers.SGD(0.1)))
    taken = keras.optimizers.SGD(0.1)
    GradientAccumulation(taken)
    with pytest.raises(ValueError, match="another GradientAccumulation"):
        GradientAccumulation(taken)
    for steps in (True, 1.5, "4"):
        with pytest.raises(ValueError, match="steps must be a whole number"):
            GradientAccumulation(keras.optimizers.SGD(0.1), steps=steps)
    assert GradientAccumulation(keras.optimizers.SGD(0.1), steps=np.int64(4)).steps == 4
    with strategy_of(2).scope():
        variables = [keras.Variable(np.ones(2, np.float32))]
        overwriting = keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=2)
        with pytest.raises(ValueError, match="ema_overwrite_frequency cannot work"):
            GradientAccumulation(overwriting).build(variables)
    with pytest.raises(ValueError, match="2 gradients for 1 variables"):
        GradientAccumulation(keras.optimizers.SGD(0.1)).apply(
            [tf.ones(2)] * 2, [keras.Variable(np.ones(2, np.float32))]
        )
    forgetful = GradientAccumulation(keras.optimizers.SGD(0.1), reduction="weighted")
    with pytest.raises(ValueError, match="with reduction"):
        forgetful.apply([tf.ones(2)], [keras.Variable(np.ones(2, np.float32))])
    with pytest.raises(ValueError, match="is for reduction"):
        GradientAccumulation(keras.optimizers.SGD(0.1)).count(1)
    with pytest.raises(ValueError, match="before the first microbatch"):
        GradientAccumulation(keras.optimizers.SGD(0.1), reduction="weighted").count(1)
