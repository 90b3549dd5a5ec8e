"""The best checkpoint of a run by one metric of its evaluations, and the end of a run that no longer improves.

What was best, and for how many evaluations nothing was better, is part of every checkpoint (in its manifest): a run that
goes on knows just what it knew when that checkpoint was made, and finds the same best step, and the same end, as a run
that was never interrupted. `best.json` repeats it for people and programs.
"""

import dataclasses
import difflib
import math

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.errors import InputError, StorageFailed
from trainer.training.run_directory import MEASURED_KEYS

GOALS = ("auto", "max", "min")
# Of a metric whose name contains one of these, `auto` takes less for better.
_LESS_IS_BETTER = ("loss", "perplexity", "mse", "error")
_STORAGE_ERRORS = (OSError, tf.errors.OpError, StorageFailed)


def less_is_better(metric, goal="auto"):
    """Returns whether a metric is to become small.

    Args:
        metric: its name.
        goal: one of `GOALS`; `auto` goes by the name.
    """
    if goal == "auto":
        return any(word in metric for word in _LESS_IS_BETTER)
    return goal == "min"


def check_best_metric(metric, task):
    """Looks before training whether evaluations will give a metric.

    Raises:
        InputError: if it is unknown, or the task has nothing to evaluate on.
    """
    if not task.has_evaluation:
        raise InputError(f"run.best_metric is {metric!r}, but the data has no held-out examples to evaluate on")
    of_outputs = task.output_metrics(np.ones((2, task.output_columns), np.float32))  # two examples, for the names
    _check_name(metric, task.report(dict.fromkeys(("loss", *task.metric_names), 1.0) | of_outputs))


def _check_name(metric, metrics):
    names = sorted(set(metrics) - MEASURED_KEYS)
    if metric not in names:
        near = difflib.get_close_matches(metric, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"run.best_metric: evaluation gives no {metric!r}, but {', '.join(names)}.{hint}")


@dataclasses.dataclass(frozen=True)
class Best:
    """What the evaluations of a run so far say; a function of their steps and values alone.

    Attributes:
        step: of the best evaluation, the first of equal ones; None before there was one with a finite value.
        value: of the metric then.
        without_improvement: number of evaluations since.
        history: `(step, value)` of each evaluation that was the best of its time.
    """

    step: int | None = None
    value: float | None = None
    without_improvement: int = 0
    history: tuple = ()

    def after(self, step, value, *, less):
        """Returns what holds after one more evaluation.

        Args:
            step: optimizer steps done.
            value: of the metric; one that is not finite is never best.
            less: whether less is better.
        """
        value = float(value)
        better = self.step is None or (value < self.value if less else value > self.value)
        if math.isfinite(value) and better:
            return Best(step, value, 0, (*self.history, (step, value)))
        return dataclasses.replace(self, without_improvement=self.without_improvement + 1)

    def as_json(self):
        """Returns a dict that JSON can hold, from which `from_json` makes the same."""
        return dataclasses.asdict(self) | {"history": [list(pair) for pair in self.history]}

    @classmethod
    def from_json(cls, content):
        """Returns the `Best` that `as_json` described, whatever else is beside it; that of no evaluation for None."""
        if content is None:
            return cls()
        fields = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        return cls(**fields | {"history": tuple((step, value) for step, value in content["history"])})


class BestCheckpoint:
    """Follows the evaluations of a run, keeps the best checkpoint from being deleted, and says when to end.

    Args:
        path: where `best.json` lies.
        metric: name of the metric.
        goal: one of `GOALS`.
        patience: evaluations without improvement after which the run is to end; None for never.
        report: callable that shows one line to a person.
        is_chief: whether this process writes.
    """

    def __init__(self, path, metric, goal="auto", patience=None, report=print, is_chief=True):
        self._path, self._metric, self._patience = path, metric, patience
        self._less = less_is_better(metric, goal)
        self._report, self._is_chief = report, is_chief
        self.best = Best()
        # Whose checkpoint is there: in the time between an evaluation and the end of a save, or after a save that
        # failed, not the best of all.
        self._recorded = Best()

    def resume(self, content, steps):
        """Takes up what a checkpoint knew, unless it went by another metric or goal.

        Args:
            content: what `as_json` gave when it was saved; None at the start of a run.
            steps: the steps of all checkpoints.
        """
        other = {} if content is None else {name: content.get(name, value) for name, value in self._judged_by.items()}
        if other and other != self._judged_by:
            which = "least" if self._less else "greatest"
            self._report(
                f"the best {other['metric']} until now counts no more: from here on the {which} {self._metric} does"
            )
            content = None
        self.best, self._recorded = Best.from_json(content), Best()
        if not self._is_chief:
            return
        if self.best.step is None:
            storage.remove(self._path)  # of weights that are no more
        elif not self._record(self.best, steps):
            self._recorded = self._recorded_before(steps)

    def as_json(self):
        """Returns what a checkpoint must know of the evaluations so far."""
        return self.best.as_json() | self._judged_by

    @property
    def _judged_by(self):
        return {"metric": self._metric, "less_is_better": self._less}

    def take(self, step, metrics):
        """Takes the metrics of one evaluation; returns whether it is the best so far, so that it should be saved.

        Raises:
            InputError: if the metric is not among them.
        """
        _check_name(self._metric, metrics)
        before = self.best
        self.best = before.after(step, metrics[self._metric], less=self._less)
        if self.best.step != step:
            return False
        earlier = f" (before: {before.value:.6g} at step {before.step})" if before.step is not None else ""
        self._report(f"best {self._metric} so far: {self.best.value:.6g} at step {step}{earlier}")
        return True

    @property
    def has_stalled(self):
        """Whether there were as many evaluations without improvement as patience allows."""
        return self._patience is not None and self.best.without_improvement >= self._patience

    def describe(self):
        """Returns in words what is known, for the end of a run that stalled."""
        best = "it never was a finite number"
        if self.best.step is not None:
            best = f"the best was {self.best.value:.6g} at step {self.best.step}"
        return f"{self._metric} has not improved in {self.best.without_improvement} evaluations; {best}"

    # Called by whoever saves checkpoints, in the thread that writes them.

    def committed(self, content, steps):
        """Writes `best.json` if a new checkpoint makes what it says another.

        Args:
            content: what `as_json` gave when that checkpoint was saved.
            steps: the steps of all checkpoints.
        """
        self._record(Best.from_json(content), steps)

    def kept(self):
        """Returns the steps of checkpoints that must not be deleted."""
        return () if self._recorded.step is None else (self._recorded.step,)

    def _record(self, best, steps):
        """Writes `best.json` unless it says so already, or the checkpoint is not there; returns whether it is right now."""
        if best.step == self._recorded.step:
            return True
        if best.step not in steps:
            return False
        history = [{"step": step, "value": value} for step, value in best.history]
        content = {"step": best.step, "metric": self._metric, "value": best.value, "history": history}
        try:
            storage.write_json(self._path, content)
        except _STORAGE_ERRORS as error:
            self._report(
                f"warning: cannot write {self._path}: {getattr(error, 'message', None) or error}; training goes on, and "
                "the best checkpoint before stays"
            )
            return False
        self._recorded = best
        return True

    def _recorded_before(self, steps):
        """Returns what `best.json` says, if the checkpoint of it is there."""
        try:
            content = storage.read_json(self._path)
            found = Best(content["step"], content["value"])
        except (*_STORAGE_ERRORS, ValueError, KeyError, TypeError):
            return Best()
        return found if found.step in steps else Best()


def best_step(path, run_dir):
    """Returns the step of a run's best checkpoint.

    Args:
        path: of `best.json`.
        run_dir: the run directory, for messages.

    Raises:
        InputError: if the run has no best checkpoint.
    """
    if not storage.exists(path):
        raise InputError(
            f"--best: {run_dir} has no best checkpoint, since there is no {path}. A run keeps one that has run.best_metric, "
            "such as --gin_param 'run.best_metric=\"accuracy\"', from its first evaluation on; --step takes any other."
        )
    try:
        return int(storage.read_json(path)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--best: {path} cannot be read ({error}): name a checkpoint with --step") from None
