"""Looking after a sweep from another terminal: `status`, `report` and `stop`."""

import argparse
import contextlib
import os
import signal
import socket
import time

from rich.console import Console

from launch.command_line import say
from launch.exit_codes import FINISHED, WRONG_INPUT
from launch.sweep.display import add_row, counts_text, new_table, objective_of
from launch.sweep.ledger import FAILED, RUNNING, STOPPED, Ledger, holder_of
from launch.sweep.request import default_trials_dir, wanted_of
from launch.sweep.results import report
from launch.sweep.trials import Plan, Run

VERBS = {
    "status": "Shows a sweep's trials, as the ledger and the runs have them.",
    "report": "Writes the leaderboard, the tables, the page and TensorBoard's files of a sweep again.",
    "stop": "Lets a sweep on this machine stop and its trials save, and waits for it.",
}
_POLL_SECONDS = 0.2


def add_metric_options(add):
    """Adds the options that say by what trials are compared.

    Args:
        add: the method `add_argument` of a parser or a group.
    """
    add("--metric", help="a name in metrics.jsonl; default: accuracy of a classifier's evaluation, else loss")
    add("--kind", choices=("eval", "train"), help="default: eval, if the trials evaluate")
    add("--goal", choices=("min", "max"), help="default: min for loss, perplexity, mse and error")
    add("--take", choices=("last", "best"), help="value of a trial; default: last; best if runs keep that checkpoint")


def look_after(verb, arguments, script):
    """Runs `status`, `report` or `stop`; returns the exit code.

    Raises:
        ValueError: with a message for a person.
    """
    parser = argparse.ArgumentParser(prog=f"{script} {verb}", description=VERBS[verb], allow_abbrev=False)
    parser.add_argument("--run_dir", required=True, metavar="DIR", help="the folder of the sweep")
    if verb == "stop":
        return _stop(parser.parse_args(arguments).run_dir)
    add_metric_options(parser.add_argument)
    options = parser.parse_args(arguments)
    ledger = Ledger(options.run_dir)
    if ledger.request is None:
        raise ValueError(f"there is no sweep in {options.run_dir}")
    plan = Plan(options.run_dir, ledger.request.get("trials_dir") or default_trials_dir(options.run_dir), (), ())
    runs = [Run(plan, trial) for trial in ledger.trials.values()]
    for run in runs:
        run.update()
    if verb == "report":
        report(options.run_dir, runs, wanted_of(options))
    else:
        _show(options.run_dir, runs, objective_of(runs, wanted_of(options)))
    return FINISHED


def _show(folder, runs, objective):
    holder = holder_of(folder)
    for run in runs:
        if run.trial.state == RUNNING and holder is None:
            run.trial.state = STOPPED  # with its sweep, which was killed
    who = f"process {holder['pid']} on {holder['host']} runs it" if holder else "no process runs it"
    console = Console(highlight=False)
    console.print(f"{folder}: {counts_text([run.trial for run in runs])}; {who}", markup=False, soft_wrap=True)
    table = new_table(objective)
    for run in runs:
        add_row(table, run, objective)
    console.print(table)
    for run in runs:
        if run.trial.state == FAILED:
            console.print(f"{run.trial.name}: {run.trial.error}", markup=False, soft_wrap=True)


def _stop(folder):
    """Asks the process that runs a sweep to stop, and waits until it has."""
    holder = holder_of(folder)
    if holder is None:
        say(f"no process runs a sweep in {folder}")
        return WRONG_INPUT
    if holder["host"] != socket.gethostname() or not isinstance(holder["pid"], int):
        say(f"process {holder['pid']} on {holder['host']} runs the sweep: stop it there")
        return WRONG_INPUT
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder["pid"], signal.SIGTERM)
    say(f"process {holder['pid']} was asked to stop; its trials save")
    while holder_of(folder):
        time.sleep(_POLL_SECONDS)
    say("it has stopped")
    return FINISHED
