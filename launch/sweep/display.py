"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere."""

import collections
import contextlib
import math
import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.background import duration
from launch.sweep.ledger import FAILED, FINISHED, PRUNED, RUNNING, STOPPED, SUBMITTED, WAITING
from launch.sweep.metrics import choose

_PLAIN_EVERY_SECONDS = 60.0
_SHOWN_BEST = 5
_BAR = 12
_COLORS = {FINISHED: "green", RUNNING: "cyan", SUBMITTED: "cyan", FAILED: "red", PRUNED: "yellow", STOPPED: "yellow"}


class Display:
    """Shows a sweep that runs, as a context manager.

    Args:
        title: the folder of the sweep.
        runs: {number: `Run`} of all trials, kept up to date by the runner.
        wanted: dict of what was said of the metric, for `launch.sweep.metrics.choose`.
        parallel: number of trials at a time.
        console: `rich.console.Console`; standard output if None.
    """

    def __init__(self, title, runs, wanted, parallel=1, console=None):
        self._title, self._runs, self._wanted, self._parallel = title, runs, wanted, parallel
        # Plain lines must not be wrapped: programs read them.
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live = None
        self._told_at = time.monotonic()

    def __enter__(self):
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exception):
        if self._live is not None:
            self._live.stop()

    def note(self, text):
        """Shows a line."""
        self._console.print(Text(text), soft_wrap=self._live is None)

    def ended(self, run, words, is_failure=False):
        """Shows that a trial has ended.

        Args:
            run: its `Run`.
            words: how.
            is_failure: whether it failed.
        """
        value = "" if is_failure else value_text(run, self._objective())
        line = f"{run.trial.name}: {words}{f'; {value}' if value else ''}"
        self._console.print(Text(line, style="red" if is_failure and self._live else ""), soft_wrap=self._live is None)

    def update(self, active, waiting):
        """Shows how far everything is.

        Args:
            active: list of `launch.sweep.running.Active`.
            waiting: number of trials that are to come.
        """
        if self._live is not None:
            self._live.update(Group(self._summary(active, waiting), self._table(active)))
        elif time.monotonic() - self._told_at > _PLAIN_EVERY_SECONDS:
            self._told_at = time.monotonic()
            self.note(str(self._summary(active, waiting)))
            for one in active:
                step, total = one.run.step
                value = value_text(one.run, self._objective())
                self.note(f"  {one.trial.name}: step {step:,} of {total or '?'}{f'; {value}' if value else ''}")

    def _objective(self):
        with contextlib.suppress(ValueError):
            return objective_of(self._runs.values(), self._wanted)
        return None

    def _summary(self, active, waiting):
        left = self._seconds_left(active, waiting)
        counts = counts_text([run.trial for run in self._runs.values()], waiting)
        return Text(f"{self._title}: {counts}{f'; about {duration(left)} left' if left else ''}", style="bold")

    def _seconds_left(self, active, waiting):
        """Estimates from the trials that are done how long the others take; None if none is."""
        done = [run.trial.seconds for run in self._runs.values() if run.trial.state == FINISHED and run.trial.seconds]
        if not done:
            return None
        each = sum(done) / len(done)
        rest = [max(0.0, each - (time.monotonic() - one.began)) for one in active]
        rest = [one.run.seconds_left or guess for one, guess in zip(active, rest, strict=True)]
        return (sum(rest) + waiting * each) / min(self._parallel, max(1, len(active) + waiting))

    def _table(self, active):
        objective = self._objective()
        table = new_table(objective)
        running = {one.trial.number for one in active}
        for one in active:
            add_row(table, one.run, objective)
        failed = [run for run in self._runs.values() if run.trial.state == FAILED]
        for run in [*ranked(self._runs.values(), objective)[:_SHOWN_BEST], *failed[-_SHOWN_BEST:]]:
            if run.trial.number not in running:
                add_row(table, run, objective)
        return table


def objective_of(runs, wanted):
    """Returns the `Objective` of runs, None if they have not logged enough; raises ValueError if it is not there."""
    runs = list(runs)
    finished = [run for run in runs if run.trial.state == FINISHED] or runs
    best = collections.Counter(run.best_metric for run in finished if run.best_metric)
    return choose([run.metrics for run in runs], best.most_common(1)[0][0] if best else None, **wanted)


def ranked(runs, objective):
    """Returns the runs that have finished, the best first."""
    finished = [run for run in runs if run.trial.state == FINISHED]
    if objective is None:
        return finished
    values = {run.trial.number: (objective.of(run.metrics) or (0, None))[1] for run in finished}
    return sorted(finished, key=lambda run: (objective.rank(values[run.trial.number]), run.trial.number))


def counts_text(trials, waiting=None):
    """Returns in words how many trials are in which state.

    Args:
        trials: list of `Trial`.
        waiting: number of those that are to come; None for those of the list that wait or were stopped.
    """
    states = collections.Counter(trial.state for trial in trials)
    if waiting is not None:
        states[WAITING], states[STOPPED] = waiting, 0
    order = (FINISHED, RUNNING, SUBMITTED, WAITING, STOPPED, PRUNED, FAILED)
    return ", ".join(f"{states[state]} {state}" for state in order if states[state]) or "no trials"


def new_table(objective):
    """Returns a `rich.table.Table` of trials without rows."""
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", no_wrap=True, overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    table.add_column("step", no_wrap=True)
    table.add_column(
        f"{objective.take} {objective.kind} {objective.metric}" if objective else "metric", justify="right"
    )
    table.add_column("left", justify="right", no_wrap=True)
    return table


def add_row(table, run, objective):
    """Adds a run to a table of trials."""
    trial, (step, total) = run.trial, run.step
    filled = round(_BAR * min(1.0, step / total)) if total else 0
    progress = f"{'━' * filled}{'╌' * (_BAR - filled)} {step:,}/{total:,}" if total else ""
    left = duration(run.seconds_left) if trial.state in (RUNNING, SUBMITTED) and run.seconds_left else ""
    state = trial.state
    if state == RUNNING and run.status and run.status.get("state") not in (None, "training", "finished"):
        state = run.status["state"]
    table.add_row(
        Text(trial.name),
        Text(state, style=_COLORS.get(trial.state, "")),
        Text(progress),
        Text(value_text(run, objective, short=True)),
        left,
    )


def value_text(run, objective, short=False):
    """Returns the value of a run as a text, empty if it has none yet."""
    point = objective.of(run.metrics) if objective else None
    if point is None:
        return ""
    number = number_text(point[1])
    return number if short else f"{objective.kind} {objective.metric} {number} at step {point[0]:,}"


def number_text(value):
    """Returns a number with as many digits as a person reads."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.6g}"
