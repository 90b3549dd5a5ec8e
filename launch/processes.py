"""The processes of one attempt to run a job on this machine: started together, watched, and cleared away."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

from launch import keeper
from launch.heartbeats import Heartbeats


@dataclasses.dataclass(frozen=True)
class Command:
    """What to run as one worker.

    Attributes:
        arguments: program and arguments.
        environment: variables set on top of this process's own; None removes one.
    """

    arguments: tuple
    environment: dict = dataclasses.field(default_factory=dict)


def cluster_variables(workers, index):
    """Returns the variables that make a process one worker of a cluster, as TensorFlow reads them.

    Args:
        workers: the addresses of all, `host:port`.
        index: which of them it is.
    """
    task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    return {"TF_CONFIG": json.dumps(task)}


class Workers:
    """The workers of one attempt.

    A single worker keeps this terminal. Of several, each line goes to the terminal behind `[worker N] ` and to
    `worker-N.log` in the log folder.

    Args:
        commands: a list of Command.
        log_folder: where several workers' logs are kept; made if need be.
        grace_seconds: how long workers may take to stop if this process dies.
    """

    def __init__(self, commands, log_folder=None, grace_seconds=30.0):
        self._grace_seconds = grace_seconds
        self._pipe, self._held_end = os.pipe()
        self._processes, self._pumps = [], []
        self._heartbeats = Heartbeats()
        try:
            for index, command in enumerate(commands):
                self._start(index, command, log_folder if len(commands) > 1 else None, len(commands) > 1)
        except BaseException:
            self.close()
            raise

    def _start(self, index, command, log_folder, is_piped):
        environment = {**os.environ, **self._heartbeats.environment(index), **command.environment}
        environment = {name: value for name, value in environment.items() if value is not None}
        process = subprocess.Popen(
            [sys.executable, keeper.__file__, str(self._pipe), str(self._grace_seconds), *command.arguments],
            env=environment,
            pass_fds=[self._pipe],
            stdout=subprocess.PIPE if is_piped else None,
            stderr=subprocess.STDOUT if is_piped else None,
            stdin=subprocess.DEVNULL if is_piped else None,
            start_new_session=True,  # a process group of its own, to be killed as a whole
        )
        self._processes.append(process)
        if is_piped:
            pump = threading.Thread(target=_pump, args=(process.stdout, index, log_folder), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def codes(self):
        """Returns each worker's exit code: None while it runs, 128 + n if signal n killed it."""
        codes = [process.poll() for process in self._processes]
        return [128 - code if code is not None and code < 0 else code for code in codes]

    def overdue(self):
        """Returns the numbers of the workers that run and should have given a sign of life some time ago."""
        running = [index for index, code in enumerate(self.codes()) if code is None]
        return [index for index in running if self._heartbeats.is_overdue(index)]

    def step(self):
        """Returns the last step that a worker is known to have done, or None."""
        steps = [self._heartbeats.of(index).step for index in range(len(self._processes))]
        return max((step for step in steps if step is not None), default=None)

    def send(self, number):
        """Sends a signal to every worker that runs (not to the processes that a worker itself started)."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, seconds):
        """Waits until all workers have ended or the time is over; returns whether they have."""
        deadline = time.monotonic() + seconds
        while None in self.codes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def close(self):
        """Kills whatever is left of every worker's process group, and ends when all output is written."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        # What a worker started takes a moment to die, too. Where nobody collects dead processes, as in some containers,
        # a group never empties: hence the limit.
        deadline = time.monotonic() + 1.0
        for process in self._processes:
            _wait_for_end_of_group(process.pid, deadline)
        for pump in self._pumps:
            pump.join(timeout=5)  # a process that left the group may hold the pipe open
        for end in (self._pipe, self._held_end):
            os.close(end)
        self._heartbeats.close()


def _wait_for_end_of_group(group, deadline):
    """Waits until a killed process group is empty or the monotonic clock has passed the deadline."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.01)


_terminal = threading.Lock()


def _pump(stream, index, log_folder):
    """Copies a worker's lines to the terminal, behind its name, and to its log."""
    prefix = f"[worker {index}] ".encode()
    with contextlib.ExitStack() as stack:
        log = None
        if log_folder is not None:
            os.makedirs(log_folder, exist_ok=True)
            log = stack.enter_context(open(os.path.join(log_folder, f"worker-{index}.log"), "ab", buffering=0))
            log.write(f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n".encode())
        for line in stream:
            if log is not None:
                with contextlib.suppress(OSError):  # a full disk must not block the worker behind a full pipe
                    log.write(line)
            with _terminal, contextlib.suppress(OSError, ValueError):  # nor must a terminal that was closed
                sys.stdout.buffer.write(prefix + line if line.endswith(b"\n") else prefix + line + b"\n")
                sys.stdout.buffer.flush()
