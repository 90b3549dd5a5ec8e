"""Measured processes: each system lives in a process of its own, and only one of them is asked to work at a time."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from trainer.errors import TrainingFailed

_FOLDER = pathlib.Path(__file__).parent
_REPOSITORY = _FOLDER.parent.parent
_CLOSE_SECONDS = 30


def child_environment(environment):
    """Returns the environment of a measured process: the CPU alone, quiet libraries, and programs compiled afresh.

    Args:
        environment: dict such as `os.environ`; not changed.
    """
    kept = [flag for flag in environment.get("TF_XLA_FLAGS", "").split() if "persistent_cache" not in flag]
    own = {
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # no system here needs anything from elsewhere
    }
    # Each system chooses its own Keras.
    others = {name: value for name, value in environment.items() if name not in ("TF_XLA_FLAGS", "KERAS_BACKEND")}
    return others | own | ({"TF_XLA_FLAGS": " ".join(kept)} if kept else {})


class MeasuredProcess:
    """A process that speaks `peers.protocol`. Use it as a context manager: it ends with the block.

    Args:
        name: what messages call it.
        arguments: command line after the interpreter.
        settings: dict of JSON values.
        python: the interpreter; this one if None.
        variables: further environment variables.

    Attributes:
        absent: why the system cannot be measured; None if it can.
        information: what it says of itself.
    """

    def __init__(self, name, arguments, settings, python=None, variables=None):
        self.name = name
        # Closed by `close`.
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.absent, self.information = None, {}
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, *arguments, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                encoding="utf-8",
                env=child_environment(os.environ) | (variables or {}),
                cwd=_REPOSITORY,
            )
        except OSError as error:
            self._process, self.absent = None, f"{python or sys.executable}: {error.strerror}"
            return
        try:
            self.information = self._answer()
        except BaseException:
            self.close()
            raise
        self.absent = self.information.get("absent")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ask(self, command, **arguments):
        """Gives a command and returns the answer.

        Raises:
            TrainingFailed: if the process ended instead.
        """
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._log.seek(0)
        said = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        last = said[-1] if said else "it said nothing"
        raise TrainingFailed(f"the measured process {self.name} ended with code {code}: {last}")

    def close(self):
        """Lets the process end, and ends it if it does not."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
        self._log.close()


def peer(name, script, settings, python=None):
    """Starts a peer: a script of `peers/` under any interpreter; it need not have this project installed."""
    return MeasuredProcess(name, [str(_FOLDER / "peers" / script)], settings, python)


def worker(module, settings, variables=None):
    """Starts a module of `workers/` under this interpreter.

    Raises:
        TrainingFailed: if it cannot work: without it there is nothing to compare.
    """
    command = ["-m", f"tools.benchmark.workers.{module}"]
    process = MeasuredProcess(module, command, settings, variables=variables)
    if process.absent:
        process.close()
        raise TrainingFailed(f"{module} cannot be measured: {process.absent}")
    return process
