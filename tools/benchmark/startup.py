"""`startup`: from starting the program to the end of its first step: with nothing compiled yet, again, and resumed."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

from tools.benchmark import processes
from tools.benchmark.tables import Findings
from trainer.errors import TrainingFailed

_REPOSITORY = pathlib.Path(__file__).parent.parent.parent
_ROWS = 4096
# What the program prints, in this order, and what it has done by then.
_MARKS = (
    (re.compile(r"^strategy "), "libraries loaded, devices started"),
    (re.compile(r"^global \d+ = "), "configuration and data checked"),
    (re.compile(r"compiled and did the first step"), "first step done"),
)
_STARTS = ("cold compilation cache", "warm compilation cache", "resumed, warm cache")
_STEPS, _CHECKPOINT_EVERY = 4, 2


def measure(settings, report):
    """Starts a run, the same one in a new run directory, and that one again as if it had been stopped half-way.

    All three have the same, at first empty, cache folder.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    with tempfile.TemporaryDirectory(prefix="bert-trainer-benchmark-") as folder:
        folder = pathlib.Path(folder)
        data = {"rows": _ROWS, "length": settings.length, "vocabulary_size": settings.vocabulary_size}
        with processes.worker("synthetic_data", {"folder": str(folder / "data"), **data}):
            pass
        starts = {}
        for name, run in zip(_STARTS, ("run_0", "run_1", "run_1"), strict=True):
            report(f"starting the program: {name}")
            if (folder / run).exists():
                shutil.rmtree(folder / run / "checkpoints" / f"step_{_STEPS:08d}")
            starts[name] = _start(settings, folder / "data", folder / run, folder / "cache")
    return summarize(starts)


def command_line(settings, data, run_directory):
    """Returns the command that trains some steps of the measured model."""
    parameters = {
        "data": f'"{data}"',
        "steps": _STEPS,
        "checkpoint_every": _CHECKPOINT_EVERY,
        "global_batch": settings.microbatch,
        "microbatch": settings.microbatch,
        "eval_every": None,
        "strategy": '"cpu"',
        "devices": 1,
        "precision": '"float32"',
        "warmup_steps": 0,
        "encoder.num_layers": settings.num_layers,
        "encoder.hidden_size": settings.hidden_size,
        "encoder.num_heads": settings.num_heads,
        "encoder.intermediate_size": settings.feed_forward_size,
        "encoder.max_length": max(512, settings.length),
        "masking.max_predictions": settings.predictions,
    }
    command = [sys.executable, "-u", "-m", "trainer", "--gin", "pretrain.gin", "--run_dir", str(run_directory)]
    for name, value in parameters.items():
        command += ["--gin_param", f"{name}={value}"]
    return command


def _start(settings, data, run_directory, cache):
    """Runs the program; returns `{what was done: seconds since the start}`."""
    environment = processes.child_environment(os.environ) | {"XDG_CACHE_HOME": str(cache)}
    with tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command_line(settings, data, run_directory),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=environment,
            cwd=_REPOSITORY,
        )
        with process:
            seconds = read_marks(process.stdout, lambda: time.perf_counter() - began)
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    if process.returncode or len(seconds) < len(_MARKS):
        raise TrainingFailed(
            f"python -m trainer ended with code {process.returncode} after "
            f"{', '.join(seconds) or 'nothing'}: {said[-1] if said else 'it said nothing'}"
        )
    return seconds


def read_marks(lines, elapsed):
    """Reads what the program prints to its end; returns `{what was done: seconds}` of the marks in it.

    Args:
        lines: iterable of lines.
        elapsed: callable that returns the seconds since the start.
    """
    seconds = {}
    for line in lines:
        for pattern, name in _MARKS:
            if name not in seconds and pattern.search(line):
                seconds[name] = elapsed()
    return seconds


def summarize(starts):
    """Turns the seconds of all starts, `{start: {what was done: seconds}}`, into findings."""
    rows = tuple((name, *(f"{starts[start][name]:.1f}" for start in _STARTS)) for _, name in _MARKS)
    notes = ("seconds since the process was started; the data lie prepared",)
    return Findings("From start to first step", ("by then", *_STARTS), rows, notes, {"seconds": starts})
