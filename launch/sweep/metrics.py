"""What the trials logged: reading `metrics.jsonl` while it grows, and the one number by which trials are compared."""

import dataclasses
import difflib
import json
import math
import os

from launch.run_files import is_remote, read_text

FILE = "metrics.jsonl"
TRAIN, EVAL = "train", "eval"
LAST, BEST = "last", "best"
# What measures the machine rather than the model.
MEASURED = frozenset(
    {
        "examples_per_second",
        "tokens_per_second",
        "step_seconds",
        "evaluation_seconds",
        "input_wait_share",
        "memory_bytes",
        "seconds",
    }
)
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# Of a metric whose name contains one of these, less is better, as for the trainer's `run.best_metric`.
_LESS_IS_BETTER = ("loss", "perplexity", "mse", "error")
# What evaluations of pretraining have, besides an accuracy that depends on how tokens are masked.
_OF_PRETRAINING = "masked_language_model_loss"


class Metrics:
    """The metrics of one run, read again and again while it goes on.

    Of several records with the same kind and step the last one counts: a resumed run writes again the steps since its
    checkpoint. A line that is torn, or no record, is passed over.

    Args:
        run_dir: the run directory, local or `gs://`.
    """

    def __init__(self, run_dir):
        self._path = f"{str(run_dir).rstrip('/')}/{FILE}"
        self._records, self._names = {}, {}
        self._offset = 0
        self._identity = None

    def update(self):
        """Reads what is new; returns whether there was anything."""
        if is_remote(self._path):
            text = read_text(self._path)
            if text is None or len(text) == self._offset:
                return False
            self._forget()
            self._offset = len(text)
            self._take(text.encode().split(b"\n"))
            return True
        try:
            with open(self._path, "rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_size < self._offset or self._identity not in (None, stat.st_ino):
                    self._forget()  # another file, or a line taken back
                self._identity = stat.st_ino
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return False
        self._take(content.split(b"\n"))
        self._offset += content.rfind(b"\n") + 1  # what is behind may be half a line, and is read again
        return bool(content)

    def records(self, kind):
        """Returns the list of records of a kind, in the order of their steps."""
        own = self._records.get(kind, {})
        return [own[step] for step in sorted(own)]

    def curve(self, kind, name):
        """Returns [(step, value)] of a metric, non-finite values included."""
        return [(record["step"], record[name]) for record in self.records(kind) if _is_number(record.get(name))]

    def names(self, kind):
        """Returns the names of the metrics of a kind, in the order in which they came."""
        return list(self._names.get(kind, ()))

    def _forget(self):
        self._records, self._names, self._offset = {}, {}, 0

    def _take(self, lines):
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                record = {key: _NON_FINITE.get(v, v) if isinstance(v, str) else v for key, v in record.items()}
                kind = record.get("kind", TRAIN)
                self._records.setdefault(kind, {})[record["step"]] = record
                metrics = {name for name, value in record.items() if _is_number(value)} - MEASURED - {"step"}
                names = self._names.setdefault(kind, {})
                names.update((name, None) for name in record if name in metrics)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The number by which trials are compared.

    Attributes:
        metric: name of a metric.
        kind: `eval` or `train`.
        less: whether less is better.
        take: `last` for the value at the last step that has one, `best` for the best finite one.
    """

    metric: str
    kind: str = EVAL
    less: bool = True
    take: str = LAST

    def __str__(self):
        return f"{self.take} {self.kind} {self.metric}, {'least' if self.less else 'greatest'} first"

    def of(self, metrics):
        """Returns (step, value) of a run, or None if it logged no such metric."""
        curve = metrics.curve(self.kind, self.metric)
        if not curve:
            return None
        finite = [point for point in curve if math.isfinite(point[1])]
        if self.take == LAST or not finite:
            return curve[-1]
        best = (min if self.less else max)(value for _, value in finite)
        return next(point for point in finite if point[1] == best)

    def rank(self, value):
        """Returns what sorts values, better ones first, those that are no number last."""
        if value is None or math.isnan(value):
            return (1, 0.0) if value is not None else (2, 0.0)
        return (0, value if self.less else -value)


def choose(runs, best_metric=None, *, metric=None, kind=None, goal=None, take=None):
    """Decides by what trials are compared, as far as nothing is said by what they logged.

    Without a metric: the one whose best checkpoint the runs keep, if they do; of a classifier `f1_micro` (several labels) or
    `accuracy`; else `loss`. Of evaluations, if there are any; the best value where the runs keep the checkpoint that has
    it, else the last one.

    Args:
        runs: list of `Metrics`.
        best_metric: name of the metric whose best checkpoint the runs keep, or None.
        metric, kind, goal (`min` or `max`), take (`last` or `best`): what was said, or None.

    Returns:
        `Objective`; None if nothing was logged yet by which it could be decided.

    Raises:
        ValueError: if there is no such metric, with those that are there.
    """
    logged = {known: {name for run in runs for name in run.names(known)} for known in (EVAL, TRAIN)}
    if not any(logged.values()):
        return None
    if metric is None:
        metric = _usual(logged[kind] if kind else logged[EVAL] or logged[TRAIN], best_metric)
    kind = kind or (EVAL if metric in logged[EVAL] else TRAIN)
    if metric not in logged[kind]:
        if not logged[kind]:
            raise ValueError(f"--metric {metric} --kind {kind}: the trials log nothing of that kind")
        near = difflib.get_close_matches(metric, sorted(logged[kind]), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"--metric {metric}: the trials log {', '.join(sorted(logged[kind]))} ({kind}).{hint}")
    less = any(word in metric for word in _LESS_IS_BETTER) if goal is None else goal == "min"
    if take is None:
        take = BEST if kind == EVAL and metric == best_metric else LAST
    return Objective(metric, kind, less, take)


def _usual(names, best_metric):
    if best_metric in names:
        return best_metric
    if _OF_PRETRAINING not in names:
        for name in ("f1_micro", "accuracy"):
            if name in names:
                return name
    return "loss" if "loss" in names else min(names)
