"""Running the trainer's real command line in processes of its own, and reading what a run left behind."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

from trainer.errors import InputError
from trainer.training.run_directory import MEASURED_KEYS, read_metrics

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEADLINE_SECONDS = 300
_POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
        code: its exit code.
        output: what it wrote on standard output.
        errors: what it wrote on standard error.
    """

    code: int
    output: str
    errors: str

    @property
    def text(self):
        """Everything it wrote."""
        return self.output + self.errors


def environment(**changes):
    """Returns the environment of a user's process: that of the tests without what they set for themselves."""
    ours = {name: value for name, value in os.environ.items() if name not in ("TF_XLA_FLAGS", "TF_CONFIG")}
    return ours | {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"} | changes


class Process:
    """A command that runs; use it as a context manager, which leaves no process behind.

    Args:
        arguments: the arguments of Python.
        variables: environment variables that differ.
    """

    def __init__(self, *arguments, **variables):
        self._popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.communicate()

    @property
    def pid(self):
        """Number of the process."""
        return self._popen.pid

    @property
    def lives(self):
        """Whether it has not ended."""
        return self._popen.poll() is None

    def send(self, number):
        """Sends a signal."""
        self._popen.send_signal(number)

    def let_run(self, seconds):
        """Lets the process go on for a moment, so that what follows hits it anywhere; nothing may depend on it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)

    def finish(self):
        """Waits for the end; returns `Finished`."""
        output, errors = self._popen.communicate(timeout=DEADLINE_SECONDS)
        return Finished(self._popen.returncode, output, errors)

    def wait_until(self, condition, what):
        """Polls until a condition holds; fails if the process ends or the deadline passes before.

        Returns:
            what the condition returned.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (value := condition()):
            if not self.lives:
                raise AssertionError(f"ended before {what}: {self.finish()}")
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(_POLL_SECONDS)
        return value


def run_python(*arguments, **variables):
    """Runs Python with arguments to its end; returns `Finished`."""
    with Process(*arguments, **variables) as process:
        return process.finish()


def trainer_arguments(gin, run_dir, *parameters, others=()):
    """Returns the arguments of Python that run the trainer.

    Args:
        gin: a gin file or a list of them; none continues the configuration of the run directory.
        run_dir: the run directory.
        parameters: texts such as `steps=4`.
        others: further arguments of the command line.
    """
    files = [gin] if isinstance(gin, str | os.PathLike) else gin
    return [
        *("-m", "trainer"),
        *(part for name in files for part in ("--gin", str(name))),
        *(part for text in parameters for part in ("--gin_param", text)),
        *("--run_dir", str(run_dir), *map(str, others)),
    ]


def train(gin, run_dir, *parameters, others=(), code=0, **variables):
    """Runs the trainer to its end and checks the exit code; returns `Finished`."""
    finished = run_python(*trainer_arguments(gin, run_dir, *parameters, others=others), **variables)
    assert finished.code == code, f"exit code {finished.code} instead of {code}:\n{finished.text}"
    return finished


def metrics(run_dir, kind="train"):
    """Returns the records of a run by step, without what measures the machine."""
    return {
        record["step"]: {name: value for name, value in record.items() if name not in MEASURED_KEYS | {"kind"}}
        for record in read_metrics(run_dir)
        if record["kind"] == kind
    }


def last_step(run_dir):
    """Returns the newest step in the metrics, 0 before there is one; another process may be writing them."""
    try:
        return max(metrics(run_dir), default=0)
    except InputError:
        return 0


def losses(run_dir, kind="train"):
    """Returns the losses in the order of the steps."""
    return [record["loss"] for record in metrics(run_dir, kind).values()]


def status(run_dir):
    """Returns the content of `status.json`, or an empty dict before there is one."""
    try:
        with open(os.path.join(run_dir, "status.json")) as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def committed_steps(run_dir):
    """Returns the steps of the committed checkpoints in rising order."""
    return sorted(step for step, committed in checkpoint_folders(run_dir).items() if committed)


def checkpoint_folders(run_dir):
    """Returns `{step: whether it is committed}` of all folders of checkpoints."""
    folder = os.path.join(run_dir, "checkpoints")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {
        int(name.removeprefix("step_")): os.path.exists(os.path.join(folder, name, "COMMITTED"))
        for name in names
        if re.fullmatch(r"step_\d+", name)
    }


def checkpoint_path(run_dir, step):
    """Returns the folder of a checkpoint."""
    return os.path.join(run_dir, "checkpoints", f"step_{step:08d}")


def checkpoint_values(run_dir, step):
    """Returns `{name: array}` of everything in a checkpoint: weights, optimizer slots, counters."""
    reader = tf.train.load_checkpoint(os.path.join(checkpoint_path(run_dir, step), "weights"))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    return {name: reader.get_tensor(name) for name in sorted(names)}


def assert_same_bits(ours, expected):
    """Checks that two dicts of arrays have the same names and the same bits."""
    assert ours.keys() == expected.keys()
    different = [name for name, value in expected.items() if ours[name].tobytes() != np.asarray(value).tobytes()]
    assert not different, f"other bits in {', '.join(different)}"
