"""Reading what trials logged, as the trainer itself reads it, and the one number that counts."""

import json
import math

import numpy as np
import pytest
from sweep_process import evaluations

from launch.sweep.metrics import _LESS_IS_BETTER, MEASURED, Metrics, Objective, choose
from trainer.training import best_checkpoint, run_directory

MESSY = [
    '{"step": 1, "kind": "train", "loss": 3.0}',
    '{"step": 2, "kind": "train", "loss": 2.0}',
    '{"step": 2, "kind": "eval", "loss": 2.5, "accuracy": 0.5, "evaluation_seconds": 1.0}',
    '{"step": 3, "kind": "train", "loss": "NaN"}',
    '{"step": 2, "kind": "train", "loss": 2.25}',  # a life later
    '{"step": 2, "kind": "eval", "loss": "Infinity", "accuracy": 0.25}',
    '{"step": 4, "kind": "eval", "loss": 1.5, "accuracy": 0.75, "labels": [1, 2], "name": "x"}',
]


def metrics_of(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(text)
    metrics = Metrics(folder)
    metrics.update()
    return metrics


def records_of(folder, records):
    return metrics_of(folder, "".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("end", ["\n", "", '\n{"step": 5, "kind": "tr', '\n{"step": 5}\n', "\n\n"])
def test_metrics_are_those_that_the_trainer_reads(tmp_path, end):
    metrics = metrics_of(tmp_path, "\n".join(MESSY) + end)
    ours = {(kind, record["step"]): record for kind in ("train", "eval") for record in metrics.records(kind)}
    expected = {
        (record.get("kind", "train"), record["step"]): record for record in run_directory.read_metrics(tmp_path)
    }
    assert ours.keys() == expected.keys()
    for key, record in expected.items():
        np.testing.assert_equal(ours[key], record)


def test_metrics_that_grow_byte_by_byte_are_read_once_and_whole(tmp_path):
    text = "\n".join(MESSY) + "\n"
    metrics = Metrics(tmp_path)
    assert not metrics.update()
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for character in text:
            file.write(character)
            file.flush()
            metrics.update()
    assert [metrics.curve("train", "loss")[0], metrics.curve("eval", "accuracy")] == [(1, 3.0), [(2, 0.25), (4, 0.75)]]
    assert not metrics.update()
    assert metrics.names("eval") == ["loss", "accuracy"]


def test_torn_line_that_is_taken_back_leaves_nothing(tmp_path):
    metrics = metrics_of(tmp_path, '{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    metrics.update()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 0.5}\n')
    metrics.update()
    assert metrics.curve("train", "loss") == [(1, 1.0), (2, 0.5)]
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 9.0}\n')  # begun anew
    metrics.update()
    assert metrics.curve("train", "loss") == [(7, 9.0)]


def test_names_and_directions_are_those_of_the_trainer():
    assert MEASURED == run_directory.MEASURED_KEYS
    assert _LESS_IS_BETTER == best_checkpoint._LESS_IS_BETTER


@pytest.mark.parametrize(
    ("logged", "best_metric", "said", "expected"),
    [
        ({"loss": [1.0], "accuracy": [0.5], "f1": [0.5]}, None, {}, Objective("accuracy", "eval", False, "last")),
        ({"loss": [1.0], "accuracy": [0.5], "f1_micro": [0.5]}, None, {}, Objective("f1_micro", "eval", False, "last")),
        ({"loss": [1.0], "mean_squared_error": [1.0]}, None, {}, Objective("loss", "eval", True, "last")),
        (
            {"loss": [1.0], "accuracy": [0.5], "masked_language_model_loss": [1.0], "perplexity": [3.0]},
            None,
            {},
            Objective("loss", "eval", True, "last"),
        ),
        ({"loss": [1.0], "f1_macro": [0.5]}, "f1_macro", {}, Objective("f1_macro", "eval", False, "best")),
        (
            {"loss": [1.0], "f1_macro": [0.5]},
            "f1_macro",
            {"take": "last"},
            Objective("f1_macro", "eval", False, "last"),
        ),
        ({"loss": [1.0], "f1_macro": [0.5]}, "f1_macro", {"metric": "loss"}, Objective("loss", "eval", True, "last")),
        (
            {"loss": [1.0], "mean_squared_error": [1.0]},
            None,
            {"metric": "mean_squared_error", "goal": "max", "take": "best"},
            Objective("mean_squared_error", "eval", False, "best"),
        ),
    ],
)
def test_trials_are_compared_by_what_was_said_or_by_what_their_task_logs(tmp_path, logged, best_metric, said, expected):
    train = {"step": 10, "kind": "train", "loss": 1.0, "learning_rate": 0.1}
    assert choose([records_of(tmp_path, [train, *evaluations(**logged)])], best_metric, **said) == expected


def test_without_evaluations_the_training_loss_counts(tmp_path):
    metrics = records_of(tmp_path, [{"step": 1, "kind": "train", "loss": 1.0, "accuracy": 0.5}])
    assert choose([metrics]) == Objective("accuracy", "train", False, "last")
    assert choose([Metrics(tmp_path / "nothing")]) is None
    with pytest.raises(ValueError, match=r"the trials log accuracy, loss \(train\). Did you mean accuracy"):
        choose([metrics], metric="acuracy")
    with pytest.raises(ValueError, match="log nothing of that kind"):
        choose([metrics], metric="loss", kind="eval")


def test_value_is_the_last_or_the_best_finite_one(tmp_path):
    metrics = records_of(tmp_path, evaluations(loss=[3.0, 1.0, 1.0, 2.0, "NaN"], accuracy=[0.1, 0.9, 0.8, 0.2, 0.3]))
    assert Objective("accuracy", "eval", False, "best").of(metrics) == (20, 0.9)
    assert Objective("loss", "eval", True, "best").of(metrics) == (20, 1.0)
    assert Objective("accuracy", "eval", False, "last").of(metrics) == (50, 0.3)
    step, value = Objective("loss", "eval", True, "last").of(metrics)
    assert step == 50 and math.isnan(value)
    assert Objective("f1", "eval", False, "last").of(metrics) is None
    values = [None, math.nan, math.inf, 2.0, 1.0]
    assert sorted(values, key=Objective("loss", less=True).rank) == [1.0, 2.0, math.inf, math.nan, None]
    assert sorted(values, key=Objective("a", less=False).rank) == [math.inf, 2.0, 1.0, math.nan, None]
