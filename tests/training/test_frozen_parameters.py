"""Frozen parameters keep their bits and have no gradient and no slots; the others are trained as ever."""

import numpy as np
import pytest
from small_runs import small_run

from trainer.errors import InputError
from trainer.optimizers.recipes import adamw
from trainer.optimizers.schedules import ConstantSchedule
from trainer.optimizers.transformations import LearningRateMultipliers
from trainer.training import checkpoint_content
from trainer.training.checkpoints import CheckpointManager

FROZEN = ("Embeddings/", "query_key_value/bias")  # upper and lower case are the same


def is_frozen(name):
    return "embeddings/" in name or name.endswith("query_key_value/bias")


@pytest.fixture(scope="module")
def trained():
    """The weights before, and the run after five steps, on one device with the whole batch at once."""
    run = small_run(frozen=FROZEN, compile_step=True)
    before = run.weights()
    return before, run.train(5), run


def test_frozen_parameters_keep_their_bits_and_all_others_move(trained):
    before, records, run = trained
    after = run.weights()
    assert after.keys() == small_run().weights().keys()
    same = {name for name, value in after.items() if value.tobytes() == before[name].tobytes()}
    assert same == {name for name in after if is_frozen(name)} and 4 < len(same) < len(after) - 4
    assert all(record["skipped"] == 0 for record in records)


def test_frozen_parameters_have_no_slots_and_no_part_in_the_gradient(trained):
    _, records, run = trained
    names = checkpoint_content.flatten(run.state.checkpoint_variables())
    slots = [name for name in names if name.startswith("optimizer/")]
    assert slots and not [name for name in slots if is_frozen(name.rpartition("/")[0])]
    weights = [name.removeprefix("weights/") for name in names if name.startswith("weights/")]
    assert sorted(weights) == sorted(run.weights())

    everything = small_run()
    gradients, _ = everything.step.inspect(next(everything.iterator))
    trained_parameters = [
        gradient.numpy()
        for parameter, gradient in zip(everything.state.parameters, gradients, strict=True)
        if not is_frozen(parameter.name)
    ]
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in trained_parameters))
    assert records[0]["gradient_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("topology", [(1, 4), (2, 2)])
def test_losses_do_not_depend_on_topology(trained, topology):
    replicas, accumulation = topology
    run = small_run(replicas=replicas, accumulation=accumulation, frozen=FROZEN)
    for ours, expected in zip(run.train(5), trained[1], strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)


def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    first = small_run(frozen=FROZEN)
    first.train(2)
    # A checkpoint has the frozen weights, too: another seed starts from others.
    second = small_run(frozen=FROZEN, seed=4)
    second.step.seed = first.step.seed
    second.train(2)
    CheckpointManager(str(tmp_path), first.state.checkpoint_variables(), report=lambda line: None).save(2, wait=True)
    CheckpointManager(str(tmp_path), second.state.checkpoint_variables()).restore(2)
    assert second.train(3) == first.train(3)
    for name, value in second.weights().items():
        assert value.tobytes() == first.weights()[name].tobytes()


def test_an_optimizer_may_name_what_is_frozen():
    multipliers = LearningRateMultipliers(factors={"embeddings": 0.1}, depth_decay=0.5)
    optimizer = adamw(learning_rate=ConstantSchedule(peak=1e-2), transformations=(multipliers,))
    assert small_run(optimizer=optimizer, frozen=FROZEN).train(1)[0]["skipped"] == 0


@pytest.mark.parametrize(
    ("frozen", "problem"),
    [
        (("encoder", "layer_7"), r"run\.frozen: no parameter has 'layer_7' in its name; names are like pretraining/"),
        (("pretraining",), "leaves nothing to train"),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(frozen, problem):
    with pytest.raises(InputError, match=problem):
        small_run(frozen=frozen)
