"""The best checkpoint and the early end of a run are functions of its evaluations, however often it was killed."""

import json
import math
import os
import random
import types

import pytest
import tensorflow as tf
from small_runs import small_task, strategy_of

from trainer import storage
from trainer.distribution import Cluster, divide_batch
from trainer.errors import InputError
from trainer.run import Run
from trainer.training import checkpoints, loop
from trainer.training.best_checkpoint import Best, best_step, check_best_metric, less_is_better
from trainer.training.checkpoints import CheckpointManager
from trainer.training.run_directory import RunDirectory, read_metrics

# Of steps 2, 4, ...: the best of the first ones stays the best until patience ends, while step 40 would be better.
ACCURACIES = [0.5, 0.6, 0.55, 0.61, 0.61, math.nan, 0.4, 0.3, *[0.1] * 10, 0.7, 0.9]
STEPS, EVAL_EVERY = 40, 2


class Killed(BaseException):
    """Stands for `kill -9`: nothing that handles errors handles it."""


class Kills:
    """Counts the moments at which a run may be killed, and kills it at one of them."""

    def __init__(self):
        self.moments, self.at, self.evaluated = 0, None, []

    def moment(self):
        self.moments += 1
        if self.moments == self.at:
            raise Killed

    def around(self, function, when=lambda *arguments: True):
        """Returns a function that has such a moment before and after it where `when` says so."""

        def called(*arguments, **options):
            if not when(*arguments):
                return function(*arguments, **options)
            self.moment()
            result = function(*arguments, **options)
            self.moment()
            return result

        return called


class CountingStep:
    """A training step that counts, on the state's only weight."""

    metric_names = ("loss", "skipped")

    def __init__(self, state):
        self.state = state
        self.loop = tf.function(self._loop)

    def _loop(self, iterator, num_steps):
        self.state.weight.assign_add(tf.cast(num_steps, tf.float32))
        self.state.step.assign_add(tf.cast(num_steps, tf.int64))
        return tf.zeros([num_steps, 2]), tf.zeros([], tf.float64)


class CountingState:
    """A state of one weight, which is the number of steps."""

    model, parameters, slots = None, (), ()

    def __init__(self):
        self.weight, self.step = tf.Variable(0.0), tf.Variable(0, dtype=tf.int64)

    def checkpoint_variables(self):
        return {"weights": {"weight": self.weight}, "step": self.step}


def assembly_in(folder, **options):
    """An `Assembly` whose model costs nothing, with everything around it real."""
    options = {"best_metric": "accuracy", "early_stopping_patience": 4} | options
    optimizer = types.SimpleNamespace(evaluates_other_values=False)
    run = Run(
        task=None, optimizer=optimizer, steps=STEPS, global_batch=2, eval_every=EVAL_EVERY, checkpoint_every=3,
        keep_checkpoints=2, steps_per_loop=1, log_every=1, asynchronous_checkpoints=False, **options
    )  # fmt: skip
    task = types.SimpleNamespace(
        tokens_per_example=1, has_evaluation=True, fingerprints=("data",), metric_names=(), data_rows=(), samples=(),
        output_columns=1, report=lambda metrics: metrics,
    )  # fmt: skip
    dataset = tf.data.Dataset.from_tensors(0).repeat()
    return types.SimpleNamespace(
        run=run,
        task=task,
        config=types.SimpleNamespace(text=""),
        cluster=Cluster("cpu", strategy_of(1), 0, 1, 1, ("CPU:0",)),
        directory=RunDirectory(folder, report=lambda line: None),
        batch=divide_batch(2, 1, 2, 2),
        metadata=lambda: {"data": ["data"]},
        new_state=CountingState,
        train_step=CountingStep,
        evaluation_step=lambda state: types.SimpleNamespace(state=state, loop=tf.function(lambda iterator, number: 0)),
        training_iterator=lambda step, placeholder=False: iter(dataset),
        evaluation_iterator=lambda placeholder=False: (iter(dataset), 1),
    )


@pytest.fixture
def kills(monkeypatch):
    """A run can be killed around each evaluation, each stage of a save or deletion, and each writing of `best.json`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nobody turns the power off
    kills = Kills()

    def scripted(assembly, evaluation):
        step = int(evaluation.state.step)
        assert step == evaluation.state.weight  # the weights are those of that step
        kills.evaluated.append(step)
        return {"accuracy": ACCURACIES[step // EVAL_EVERY - 1], "loss": 1.0}

    monkeypatch.setattr(loop, "evaluate", kills.around(scripted))
    monkeypatch.setattr(checkpoints.checkpoint_content, "write", kills.around(checkpoints.checkpoint_content.write))
    monkeypatch.setattr(storage, "write_text", kills.around(storage.write_text, lambda path, _: "COMMITTED" in path))
    monkeypatch.setattr(storage, "write_json", kills.around(storage.write_json, lambda path, _: "best" in path))
    monkeypatch.setattr(storage, "remove", kills.around(storage.remove, lambda path: path.endswith("COMMITTED")))
    return kills


def train(folder, **options):
    """Trains to the end; returns the notes that were shown."""
    training = loop.TrainingRun(assembly_in(str(folder), **options))
    notes = []
    training.telemetry.note = notes.append
    if training.best is not None:
        training.best._report = notes.append
    training.train()
    return notes


def outcome(folder):
    """Returns what a run left: the best, its evaluations, and its last status; then the steps of its checkpoints."""
    best = json.loads((folder / "best.json").read_text())
    evaluations = {r["step"]: repr(r["accuracy"]) for r in read_metrics(folder) if r["kind"] == "eval"}
    status = json.loads((folder / "status.json").read_text())
    status = {name: status[name] for name in ("state", "step", "total")}
    return (best, evaluations, status), set(CheckpointManager(str(folder / "checkpoints"), {}).steps())


def assert_same_outcome(ours, expected):
    """Compares; checkpoints that were to be deleted when the last save was killed may be left."""
    assert ours[0] == expected[0]
    assert ours[1] >= expected[1]


def assert_best_is_there(folder):
    """Checks that `best.json`, if there is one, names a checkpoint that is there."""
    if (folder / "best.json").exists():
        step = json.loads((folder / "best.json").read_text())["step"]
        assert (folder / "checkpoints" / f"step_{step:08d}" / "COMMITTED").exists()


def test_the_best_checkpoint_stays_and_patience_ends_the_run(tmp_path, kills):
    notes = train(tmp_path)
    (best, evaluations, status), steps = outcome(tmp_path)
    assert best == {
        "step": 8,
        "metric": "accuracy",
        "value": 0.61,
        "history": [{"step": 2, "value": 0.5}, {"step": 4, "value": 0.6}, {"step": 8, "value": 0.61}],
    }
    assert steps == {8, 15, 16}  # the best, and the newest two
    assert status == {"state": "finished", "step": 16, "total": STEPS}
    assert list(evaluations) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert "best accuracy so far: 0.61 at step 8 (before: 0.6 at step 4)" in notes
    told = "finished early at step 16 of 40: accuracy has not improved in 4 evaluations; the best was 0.61 at step 8"
    assert notes[-1] == told
    assert train(tmp_path) == [notes_of_resumption(tmp_path, 16), f"nothing to do: {told}"]
    assert best_step(str(tmp_path / "best.json"), "run") == 8


def notes_of_resumption(folder, step):
    return f"resumed at step {step} of {STEPS} from {folder / 'checkpoints' / f'step_{step:08d}'}"


def test_less_can_be_better_and_patience_may_be_endless(tmp_path, kills):
    train(tmp_path, best_metric_goal="min", early_stopping_patience=None)
    (best, _, status), steps = outcome(tmp_path)
    assert (best["step"], best["value"]) == (18, 0.1)  # the first of equal ones
    assert steps == {18, 39, 40} and status["step"] == STEPS


def test_a_run_killed_at_any_moment_finds_the_same_best_and_the_same_end(tmp_path, kills):
    train(tmp_path / "whole")
    num_moments, expected = kills.moments, outcome(tmp_path / "whole")
    assert num_moments > 50
    for at in range(1, num_moments + 1):
        folder = tmp_path / str(at)
        kills.moments, kills.at = 0, at
        with pytest.raises(Killed):
            train(folder)
        assert_best_is_there(folder)
        kills.at = None
        train(folder)
        assert_same_outcome(outcome(folder), expected)


def test_a_run_killed_again_and_again_finds_them_too(tmp_path, kills):
    train(tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    rng = random.Random(5)
    for number in range(10):
        folder, num_kills = tmp_path / str(number), 0
        while True:
            kills.moments, kills.at = 0, rng.randint(1, 40)
            try:
                train(folder)
                break
            except Killed:
                num_kills += 1
                assert_best_is_there(folder)
        assert_same_outcome(outcome(folder), expected)
    assert num_kills > 0


def test_the_best_before_stays_where_the_best_cannot_be_saved(tmp_path, kills, monkeypatch):
    write = checkpoints.checkpoint_content.write

    def refuse_step_8(prefix, tensors):
        if "step_00000008" in prefix:
            raise OSError("no space left on device")
        write(prefix, tensors)

    monkeypatch.setattr(checkpoints.checkpoint_content, "write", refuse_step_8)
    monkeypatch.setattr(checkpoints.time, "sleep", lambda seconds: None)
    train(tmp_path)
    (best, _, status), steps = outcome(tmp_path)
    assert best["step"] == 4 and steps == {4, 15, 16}
    assert status["step"] == 16  # patience counts from step 8


def test_the_best_by_another_metric_or_goal_counts_no_more(tmp_path, kills):
    train(tmp_path)
    notes = train(tmp_path, best_metric_goal="min", early_stopping_patience=None)
    assert notes[0] == "the best accuracy until now counts no more: from here on the least accuracy does"
    (best, _, _), _ = outcome(tmp_path)
    assert best["history"] == [{"step": 18, "value": 0.1}]  # not 0.61 of step 8


def test_without_a_best_metric_nothing_is_kept(tmp_path, kills):
    train(tmp_path, best_metric=None, early_stopping_patience=None)
    assert not (tmp_path / "best.json").exists()
    manager = CheckpointManager(str(tmp_path / "checkpoints"), {})
    assert manager.steps() == [39, 40]
    assert manager.read_manifest(40)["metadata"] == {"data": ["data"]}


def test_a_metric_that_evaluation_does_not_give_is_refused_with_those_it_gives(tmp_path, kills):
    with pytest.raises(InputError, match=r"no 'acuracy', but accuracy, loss\. Did you mean 'accuracy'\?"):
        train(tmp_path, best_metric="acuracy")
    assert kills.evaluated == [2]


def test_a_known_task_refuses_a_metric_before_training():
    task = small_task()
    task.data.held_out = ("some",)
    check_best_metric("perplexity", task)  # `report` adds it
    with pytest.raises(InputError, match=r"accuracy, loss, masked_language_model_loss, perplexity\..*'perplexity'"):
        check_best_metric("perplexities", task)
    with pytest.raises(InputError, match="no held-out examples"):
        check_best_metric("loss", small_task())


def test_what_is_better_goes_by_the_name_unless_it_is_said():
    small = ("loss", "masked_language_model_loss", "perplexity", "mse", "mean_squared_error")
    assert [name for name in (*small, "accuracy", "f1", "spearman") if less_is_better(name)] == list(small)
    assert less_is_better("error", "min") and not less_is_better("loss", "max")


def test_what_is_known_survives_json():
    best = Best().after(1, 0.1 + 0.2, less=False).after(2, math.inf, less=False).after(3, 0.5, less=False)
    assert best == Best(3, 0.5, 0, ((1, 0.1 + 0.2), (3, 0.5)))
    assert Best.from_json(json.loads(json.dumps(best.as_json()))) == best
    assert Best.from_json(None) == Best()


def test_a_run_without_a_best_checkpoint_says_how_to_get_one(tmp_path):
    with pytest.raises(InputError, match=r"has no best checkpoint.*run\.best_metric"):
        best_step(str(tmp_path / "best.json"), "runs/mine")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"early_stopping_patience": 2}, "early_stopping_patience needs run.best_metric"),
        ({"best_metric": "loss"}, "best_metric needs evaluations"),
        ({"best_metric": "loss", "eval_every": 1, "best_metric_goal": "least"}, "must be one of auto, max, min"),
        ({"frozen": ("encoder(",)}, r"run.frozen: 'encoder\(' is no regular expression"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        Run(task=None, optimizer=None, steps=1, global_batch=1, **options)
