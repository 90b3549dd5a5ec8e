"""What came out of a sweep: trials that differ in their seeds alone taken together, ranked, and written as tables."""

import csv
import dataclasses
import io
import math
import statistics

from launch.sweep.ledger import FINISHED
from launch.sweep.space import key_of, without_seeds


@dataclasses.dataclass(frozen=True)
class Row:
    """A set of parameters without its seeds, and the trials that have it.

    Attributes:
        rank: from 1 on; None if no trial has a value yet.
        parameters: tuple of (name, text).
        mean: of the values of the trials that finished; None if there are none, NaN if one is.
        deviation: sample standard deviation of the values (with n - 1); None of fewer than two.
        values: of the trials that finished, in the order of their numbers.
        trials: numbers of all its trials, finished or not.
        best: number of the trial with the best value, or None.
    """

    rank: int | None
    parameters: tuple
    mean: float | None
    deviation: float | None
    values: tuple
    trials: tuple
    best: int | None


def leaderboard(runs, objective):
    """Returns the list of `Row`s, the best first; of equal ones the first trial's.

    Args:
        runs: list of `Run`.
        objective: `Objective`, or None if nothing was logged.
    """
    groups = {}
    for run in runs:
        groups.setdefault(key_of(without_seeds(run.trial.parameters)), []).append(run)
    rows = [_row(group, objective) for group in groups.values()]
    if objective is not None:
        rows.sort(key=lambda row: objective.rank(row.mean))
    ranked = [dataclasses.replace(row, rank=rank) for rank, row in enumerate(rows, start=1) if row.mean is not None]
    return ranked + [row for row in rows if row.mean is None]


def _row(group, objective):
    values = {}
    for run in group:
        point = objective.of(run.metrics) if objective is not None and run.trial.state == FINISHED else None
        if point is not None:
            values[run.trial.number] = float(point[1])
    best = min(values, key=lambda number: objective.rank(values[number]), default=None)
    numbers = tuple(values.values())
    return Row(
        None,
        without_seeds(group[0].trial.parameters),
        mean(numbers),
        deviation(numbers),
        numbers,
        tuple(run.trial.number for run in group),
        best,
    )


def mean(values):
    """Returns the mean, None of no values; NaN or infinite where a value is."""
    return math.fsum(values) / len(values) if values else None


def deviation(values):
    """Returns the sample standard deviation, None of fewer than two values; NaN where one is not finite."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def parameter_names(runs):
    """Returns the names of all parameters that vary, in the order in which they came."""
    return list({name: None for run in runs for name, _ in run.trial.parameters})


def leaderboard_csv(rows, names):
    """Returns `leaderboard.csv`, a row for each set of parameters.

    Args:
        rows: of `leaderboard`.
        names: names of parameters that are no seeds.
    """
    table = [["rank", *names, "mean", "standard_deviation", "finished", "trials", "best_trial"]]
    for row in rows:
        parameters = dict(row.parameters)
        own = [parameters.get(name) for name in names]
        table.append([row.rank, *own, row.mean, row.deviation, len(row.values), len(row.trials), row.best])
    return _csv(table)


def trials_csv(runs, names, objective):
    """Returns `trials.csv`, a row for each trial.

    Args:
        runs: list of `Run`.
        names: names of all parameters.
        objective: `Objective`, or None.
    """
    metric = objective.metric if objective else "metric"
    table = [
        ["trial", "name", "hash", "state", "exit_code", *names, metric, "at_step", "step", "total", "starts", "seconds"]
        + ["run_dir", "error"]
    ]
    for run in runs:
        trial, parameters = run.trial, dict(run.trial.parameters)
        at_step, value = (objective.of(run.metrics) if objective else None) or (None, None)
        own = [parameters.get(name) for name in names]
        table.append(
            [trial.number, trial.name, trial.hash, trial.state, trial.code, *own, value, at_step, *run.step]
            + [trial.starts, round(trial.seconds, 1), run.run_dir, trial.error]
        )
    return _csv(table)


def _csv(table):
    """Returns rows as CSV; numbers keep all their digits, None is empty."""
    content = io.StringIO(newline="")
    csv.writer(content, lineterminator="\n").writerows(table)
    return content.getvalue()
