"""The files that tell what came out of a sweep, made of the ledger and of what the trials logged."""

import os

from rich.console import Console

from launch.command_line import command_text, say
from launch.sweep.display import number_text, objective_of
from launch.sweep.hparams import write_hparams
from launch.sweep.leaderboard import leaderboard, leaderboard_csv, parameter_names, trials_csv
from launch.sweep.page import make_page
from launch.sweep.space import is_seed

LEADERBOARD, TRIALS, PAGE = "leaderboard.csv", "trials.csv", "report.html"
_SHOWN_ROWS = 10


def report(folder, runs, wanted):
    """Writes the tables, the page and TensorBoard's files of a sweep, and prints the head of the leaderboard.

    Args:
        folder: of the sweep.
        runs: list of `Run`, read up to their ends.
        wanted: dict of what was said of the metric, for `launch.sweep.metrics.choose`.

    Raises:
        ValueError: if no trial has the metric that was asked for.
        OSError: if the disk refuses.
    """
    objective = objective_of(runs, wanted)
    names = parameter_names(runs)
    rows = leaderboard(runs, objective)
    _write(folder, LEADERBOARD, leaderboard_csv(rows, [name for name in names if not is_seed(name)]))
    _write(folder, TRIALS, trials_csv(runs, names, objective))
    _write(folder, PAGE, make_page(folder, runs, rows, objective))
    write_hparams(folder, runs, objective, names)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"by {objective}" if objective else "no trial has logged a metric", markup=False)
    for row in rows[:_SHOWN_ROWS]:
        if row.rank is not None:
            console.print(_line(row), markup=False)
    console.print(", ".join(os.path.join(folder, name) for name in (PAGE, LEADERBOARD, TRIALS)), markup=False)
    console.print(command_text(("tensorboard", "--logdir", folder)), markup=False)


def report_if_possible(folder, runs, wanted):
    """Does as `report`; a metric that is not there is told, and the usual one taken."""
    try:
        report(folder, runs, wanted)
    except ValueError as error:
        say(error)
        report(folder, runs, {})


def _line(row):
    spread = "" if row.deviation is None else f" ± {row.deviation:.2g}"
    count = len(row.values)
    of = f"{count} of {len(row.trials)}" if count < len(row.trials) else str(count)
    parameters = ", ".join(f"{name}={text}" for name, text in row.parameters) or "only the seed varies"
    return f"{row.rank:>3}. {number_text(row.mean)}{spread}  {parameters}  ({of} finished, best: trial {row.best})"


def _write(folder, name, text):
    """Writes a text, so that who reads it meanwhile finds the old one or the new one, whole."""
    path = os.path.join(folder, name)
    with open(path + ".tmp", "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.replace(path + ".tmp", path)
