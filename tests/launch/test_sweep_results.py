"""What comes out of a sweep: the leaderboard's arithmetic, the tables, and TensorBoard's HPARAMS tab."""

import csv
import math

import numpy as np
import pytest
from sweep_process import evaluations, made_by_hand

from launch.sweep.hparams import write_hparams
from launch.sweep.leaderboard import leaderboard, leaderboard_csv, parameter_names, trials_csv
from launch.sweep.ledger import FAILED, FINISHED
from launch.sweep.metrics import Objective
from launch.sweep.results import report

ACCURACY = Objective("accuracy", "eval", less=False)
LOSS = Objective("loss", "eval", less=True)


def trial(rate, seed, values, state=FINISHED, metric="accuracy"):
    parameters = [("learning_rate", rate), ("adamw.name", '"<b>, \\n"')] + ([] if seed is None else [("seed", seed)])
    return parameters, state, evaluations(**{metric: values}) if values else []


def read(text):
    return list(csv.DictReader(text.splitlines(keepends=True)))


def test_mean_and_deviation_over_seeds_are_those_of_numpy(tmp_path):
    values = {"1e-5": [0.71, 0.69, 0.73], "3e-5": [0.8, 0.6], "1e-4": [0.7]}
    runs = made_by_hand(
        tmp_path,
        [
            trial(rate, str(seed), [0.1, value])
            for seed in range(3)
            for rate, own in values.items()
            for value in own[seed : seed + 1]
        ],
    )
    rows = leaderboard(runs, ACCURACY)
    assert [dict(row.parameters)["learning_rate"] for row in rows] == ["1e-5", "3e-5", "1e-4"]
    for row in rows:
        own = values[dict(row.parameters)["learning_rate"]]
        assert row.values == tuple(own)
        np.testing.assert_allclose(row.mean, np.mean(own), rtol=1e-14)
        if len(own) > 1:
            np.testing.assert_allclose(row.deviation, np.std(own, ddof=1), rtol=1e-12)
    assert rows[2].deviation is None
    assert [row.best for row in rows] == [6, 2, 3]  # the best trial of each, not the first
    table = read(leaderboard_csv(rows, parameter_names(runs)[:2]))
    assert [float(row["mean"]) for row in table] == [row.mean for row in rows]  # all digits
    assert table[0]["standard_deviation"] == repr(rows[0].deviation) and table[2]["standard_deviation"] == ""
    assert table[0]["adamw.name"] == '"<b>, \\n"'


def test_less_is_better_and_what_is_no_number_comes_last(tmp_path):
    runs = made_by_hand(
        tmp_path,
        [
            trial("1", None, ["NaN"], metric="loss"),
            trial("2", None, [3.0], metric="loss"),
            trial("3", None, ["Infinity"], metric="loss"),
            trial("4", None, [1.0], metric="loss"),
            trial("5", None, []),
            trial("6", None, [0.5], FAILED, metric="loss"),
            trial("7", None, [0.5], "running", metric="loss"),
        ],
    )
    rows = leaderboard(runs, LOSS)
    assert [dict(row.parameters)["learning_rate"] for row in rows] == ["4", "2", "3", "1", "5", "6", "7"]
    assert [row.rank for row in rows] == [1, 2, 3, 4, None, None, None]
    assert rows[2].mean == math.inf and math.isnan(rows[3].mean)
    assert [len(row.values) for row in rows] == [1, 1, 1, 1, 0, 0, 0]


def test_a_seed_that_diverged_or_failed_shows_in_its_row(tmp_path):
    runs = made_by_hand(
        tmp_path,
        [
            trial("1", "0", [1.0], metric="loss"),
            trial("1", "1", ["NaN"], metric="loss"),
            trial("2", "0", [2.0], metric="loss"),
            trial("2", "1", [1.5], FAILED, metric="loss"),
        ],
    )
    first, second = leaderboard(runs, LOSS)
    assert dict(first.parameters)["learning_rate"] == "2" and (first.mean, len(first.values)) == (2.0, 1)
    assert first.trials == (3, 4)
    assert math.isnan(second.mean) and math.isnan(second.deviation) and second.best == 1


def test_trials_that_write_the_same_value_otherwise_are_one_row(tmp_path):
    runs = made_by_hand(tmp_path, [trial("1e-5", "0", [0.5]), trial("0.00001", "1", [0.7])])
    (row,) = leaderboard(runs, ACCURACY)
    assert row.mean == pytest.approx(0.6)


def test_table_of_trials_holds_every_trial_and_what_it_said(tmp_path):
    runs = made_by_hand(tmp_path, [trial("1", "0", [0.5, 0.25]), trial("2", "0", [], FAILED)])
    first, second = read(trials_csv(runs, parameter_names(runs), ACCURACY))
    assert (first["trial"], first["state"], first["accuracy"], first["at_step"]) == ("1", "finished", "0.25", "20")
    assert (second["state"], second["accuracy"], second["error"], second["exit_code"]) == (
        "failed",
        "",
        "it failed",
        "70",
    )
    assert first["run_dir"].endswith(first["name"]) and len(first["hash"]) == 8
    assert (first["starts"], first["seconds"]) == ("1", "60.0")


def test_sweep_without_any_result_has_all_files_all_the_same(tmp_path, capsys):
    runs = made_by_hand(tmp_path, [trial("1", None, [], FAILED)])
    report(str(tmp_path), runs, {})
    assert "no trial has logged a metric" in capsys.readouterr().out
    assert read((tmp_path / "leaderboard.csv").read_text())[0]["rank"] == ""
    assert (tmp_path / "report.html").stat().st_size > 1000


def tensorboard_sessions(folder):
    """Returns (the experiment, list of session groups) as TensorBoard's own HParams plugin reads them."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = context.RequestContext()
    experiment = get_experiment.Handler(request, backend, "", api_pb2.GetExperimentRequest()).run()
    statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    columns = [api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos]
    columns += [api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos]
    listing = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=1000, allowed_statuses=statuses, col_params=columns
    )
    return experiment, list_session_groups.Handler(request, backend, "", listing).run().session_groups


def test_tensorboard_shows_the_trials_as_sessions_with_parameters_and_metrics(tmp_path):
    from tensorboard.plugins.hparams import api_pb2

    own = [("learning_rate", "1e-5"), ("use", "True"), ("optimizer", "@adamw()"), ("seed", "3")]
    other = [("learning_rate", "3e-5"), ("use", "False"), ("optimizer", "@lamb()"), ("seed", "3")]
    runs = made_by_hand(
        tmp_path,
        [
            (own, FINISHED, evaluations(accuracy=[0.25, 0.5], f1=[0.1, 0.2])),
            (other, FAILED, []),
        ],
    )
    for _ in range(2):  # written again, it takes the place of what was there
        write_hparams(str(tmp_path), runs, ACCURACY, parameter_names(runs))
    experiment, groups = tensorboard_sessions(tmp_path)
    kinds = {info.name: info.type for info in experiment.hparam_infos}
    assert kinds == {
        "learning_rate": api_pb2.DATA_TYPE_FLOAT64,
        "seed": api_pb2.DATA_TYPE_FLOAT64,
        "use": api_pb2.DATA_TYPE_BOOL,
        "optimizer": api_pb2.DATA_TYPE_STRING,
    }
    assert {info.name.tag for info in experiment.metric_infos} == {
        "sweep/last_eval_accuracy",
        "eval/accuracy",
        "eval/f1",
    }
    first, second = sorted(groups, key=lambda group: group.name)
    assert first.name == runs[0].trial.name
    assert first.hparams["learning_rate"].number_value == 1e-5 and first.hparams["use"].bool_value is True
    assert first.hparams["optimizer"].string_value == "@adamw()" and first.hparams["seed"].number_value == 3
    values = {value.name.tag: (value.training_step, value.value) for value in first.metric_values}
    assert values == {
        "sweep/last_eval_accuracy": (20, 0.5),
        "eval/accuracy": (20, 0.5),
        "eval/f1": (20, pytest.approx(0.2)),
    }
    assert first.sessions[0].status == api_pb2.STATUS_SUCCESS
    assert second.sessions[0].status == api_pb2.STATUS_FAILURE and not second.metric_values
    assert len(list((tmp_path / "hparams").rglob("*tfevents*"))) == 3
