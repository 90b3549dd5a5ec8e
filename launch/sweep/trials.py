"""A trial as a run: its folder, the command that runs it, and what the run says about itself."""

import dataclasses
import hashlib
import math
import os
import re
import sys

from launch.command_line import TrainerJob, check_name
from launch.run_files import is_remote, read_status, read_text
from launch.sweep.ledger import Trial
from launch.sweep.metrics import EVAL, Metrics

_LAUNCH = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MOST_OF_A_VALUE, _MOST_OF_A_NAME = 24, 80
_LOG_BYTES = 16_384
_ERROR = re.compile(r"(.{1,40}: )?error: ")
LOCAL, SLURM, TPU = "local", "slurm", "tpu"
LAUNCHERS = (LOCAL, SLURM, TPU)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How trials are run.

    Attributes:
        folder: of the sweep.
        trials_dir: where the run directories lie, local or `gs://`.
        gin, gin_param: what all trials have in common.
        others: further options, for the launcher or the trainer.
        via: `local`, `slurm` or `tpu`.
        max_restarts: how often a trial is started again without progress, by its launcher.
        grace_seconds: how long a trial may take to save and stop.
    """

    folder: str
    trials_dir: str
    gin: tuple
    gin_param: tuple
    others: tuple = ()
    via: str = LOCAL
    max_restarts: int = 3
    grace_seconds: float = 120.0

    def run_dir(self, trial):
        """Returns the run directory of a trial."""
        return f"{self.trials_dir.rstrip('/')}/{trial.name}"

    def local_folder(self, trial):
        """Returns the folder on this machine for the log and the lock of a trial."""
        own = self.run_dir(trial)
        return os.path.join(self.folder, "trials", trial.name) if is_remote(own) else own

    def job(self, trial):
        """Returns the `TrainerJob` of a trial."""
        parameters = tuple(f"{name}={text}" for name, text in trial.parameters)
        return TrainerJob(self.gin, (*self.gin_param, *parameters), self.run_dir(trial), others=self.others)

    def command(self, trial):
        """Returns the arguments of the launcher that runs a trial."""
        program = [sys.executable, "-m", "launch.local"] if self.via == LOCAL else [self.script, "run", "--yes"]
        options = ["--max_restarts", str(self.max_restarts)]
        if self.via == TPU:
            options += ["--name", self.cloud_name(trial)]
        else:
            options += ["--grace_seconds", str(math.ceil(self.grace_seconds))]
        return (*program, *options, *self.job(trial).arguments())

    @property
    def script(self):
        """The launcher of a cluster."""
        return os.path.join(_LAUNCH, f"{self.via}.sh")

    def cloud_name(self, trial):
        """Returns the name of a trial's machine: no other sweep's trial has it."""
        readable = re.sub(r"[^a-z0-9]+", "-", os.path.basename(os.path.abspath(self.folder)).lower()).strip("-")
        digits = hashlib.sha256(self.run_dir(trial).encode()).hexdigest()[:8]
        return check_name(f"sweep-{readable[:30].strip('-')}-{trial.number:03d}-{digits}", "the job's name")

    def log(self, trial):
        """Returns the path of what a trial writes on its terminal."""
        return os.path.join(self.local_folder(trial), "logs", "sweep.log")

    def lock(self, trial):
        """Returns the path of the file that is locked while a process of the trial lives."""
        return os.path.join(self.local_folder(trial), "sweep.lock")


class Run:
    """What a trial's run has written so far.

    Args:
        plan: `Plan`.
        trial: `Trial`.

    Attributes:
        status: dict of `status.json`, or None.
        metrics: `Metrics`.
        best_metric: the metric by which the run keeps its best checkpoint, or None.
    """

    def __init__(self, plan: Plan, trial: Trial):
        self.trial = trial
        self.run_dir = plan.run_dir(trial)
        self.metrics = Metrics(self.run_dir)
        self.status = None
        self.best_metric = None
        self._log = plan.log(trial)

    def update(self):
        """Reads what is new; returns whether there are new metrics."""
        if not self.trial.starts:
            return False
        self.status = read_status(self.run_dir)
        has_news = self.metrics.update()
        if has_news and self.best_metric is None and self.metrics.names(EVAL):
            found = re.search(r'"metric": "([^"]+)"', read_text(f"{self.run_dir}/best.json") or "")
            self.best_metric = found[1] if found else None
        return has_news

    @property
    def step(self):
        """Optimizer steps done, and to do in the whole run; (0, None) before anything is known."""
        status = self.status or {}
        return status.get("step", 0), status.get("total")

    @property
    def seconds_left(self):
        """Estimate of the time to the last step, or None."""
        status = self.status or {}
        rate, (step, total) = status.get("seconds_per_step"), self.step
        return rate * (total - step) if rate and total else None

    def error(self, since):
        """Returns what the trainer said last of why it ended, or None.

        Args:
            since: bytes of the log that are of earlier starts.
        """
        lines = _last_lines(self._log, since)
        starts = [index for index, line in enumerate(lines) if _ERROR.match(line)]
        if starts:
            return "\n".join([_ERROR.sub("", lines[starts[-1]]), *lines[starts[-1] + 1 :]])
        return (self.status or {}).get("last_error") or (lines[-1].strip() if lines else None)


def _last_lines(path, since):
    """Returns the last lines of a log that the trainer wrote, without the launcher's own."""
    try:
        with open(path, "rb") as file:
            file.seek(max(since, os.path.getsize(path) - _LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [re.sub(r"^\[worker \d+\] ", "", line.rstrip()) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("---", "launch:"))]


def trial_name(number, parameters):
    """Returns the name of a trial's folder: its number, and its parameters as far as they fit.

    Args:
        number: of the trial.
        parameters: tuple of (name, text).
    """
    shorts = [name.rpartition(".")[2].rpartition("/")[2] for name, _ in parameters]
    parts = []
    for (name, text), short in zip(parameters, shorts, strict=True):
        shown = short if shorts.count(short) == 1 else name
        parts.append(f"{_plain(shown)}={_plain(text)[:_MOST_OF_A_VALUE]}")
    return f"{number:03d}-{'-'.join(parts)}"[:_MOST_OF_A_NAME].rstrip("-=._")


def _plain(text):
    """Returns a text in characters that file systems, buckets and shells leave alone."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_") or "empty"
