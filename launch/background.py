"""Launchers in the background: started detached from the terminal, found again, looked at and stopped.

A file `launcher.json` in the job's folder says which process it is; the time at which that process began keeps it apart
from another one that has got its number since.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

from launch.attempts import Attempts, goodput
from launch.command_line import say
from launch.exit_codes import WRONG_INPUT, describe
from launch.run_files import job_folder, read_status

FILE = "launcher.json"
LOG = "launcher.log"
_POLL_SECONDS = 0.2
_SHOWN_ATTEMPTS = 10


def detach(module, arguments, run_dir, script):
    """Starts a launcher that goes on when the terminal is closed.

    Args:
        module: of the launcher.
        arguments: its command line.
        run_dir: the run directory.
        script: name of the launcher's script, for the lines that tell what to do next.

    Returns:
        Exit code: 0, or 2 if a launcher already runs there.
    """
    folder = job_folder(run_dir, os.environ)
    if running := find(folder):
        say(f"process {running['pid']} already runs in {run_dir}; {script} stop --run_dir {run_dir} stops it")
        return WRONG_INPUT
    logs = os.path.join(folder, "logs")
    os.makedirs(logs, exist_ok=True)
    with open(os.path.join(logs, LOG), "ab") as log:
        log.write(f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n".encode())
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    say(f"process {process.pid} runs in the background")
    for verb in ("status", "logs -f", "stop"):
        print(f"  {script} {verb} --run_dir {run_dir}")
    return 0


@contextlib.contextmanager
def recorded(run_dir):
    """Notes that this process is the launcher of a run while the context lasts, and its exit code at the end.

    Yields:
        A function to which the exit code is given.
    """
    folder = job_folder(run_dir, os.environ)
    record = {"pid": os.getpid(), "began": _began(os.getpid()), "host": socket.gethostname(), "arguments": sys.argv[1:]}
    _write(folder, record)

    def ended(code):
        _write(folder, record | {"code": code, "ended_at": time.time()})

    yield ended


def find(folder):
    """Returns the record of the launcher that runs in a job's folder on this machine, or None."""
    record = _read(folder)
    if record is None or "code" in record or record["host"] != socket.gethostname():
        return None
    return record if record["began"] == _began(record["pid"]) is not None else None


def show_status(run_dir, script):
    """Prints what a run is doing; returns an exit code: 0, or 2 if there is no such run."""
    folder = job_folder(run_dir, os.environ)
    record, status, attempts = _read(folder), read_status(run_dir), Attempts(folder).read()
    if attempts and find(folder):
        attempts[-1] = dataclasses.replace(attempts[-1], seen_at=time.time())
    if record is None and status is None and not attempts:
        say(f"nothing was started in {run_dir}")
        return WRONG_INPUT
    print(f"run        {run_dir}")
    if find(folder):
        print(f"launcher   process {record['pid']} runs on {record['host']}")
    elif record and "code" in record:
        print(f"launcher   ended with {describe(record['code'])}")
    elif record and record["host"] != socket.gethostname():
        print(f"launcher   process {record['pid']} on {record['host']}: look there")
    elif record:
        print("launcher   is gone without saying how; the same command goes on with the run")
    for line in status_lines(status, attempts):
        print(line)
    if find(folder):
        print(f"           {script} logs -f --run_dir {run_dir}")
    return 0


def status_lines(status, attempts):
    """Returns lines for a person about a run.

    Args:
        status: dict of `status.json`, or None.
        attempts: list of `Attempt`s.
    """
    lines = []
    if status:
        share = f", {100 * status['step'] / status['total']:.1f}%" if status.get("total") else ""
        lines.append(f"state      {status['state']} at step {status['step']:,} of {status['total']:,}{share}")
        lines.append(f"           as of {status['updated_at']}, {status['host']} process {status['pid']}")
        rate = status.get("seconds_per_step")
        if rate and status["state"] not in ("finished", "failed"):
            left = (status["total"] - status["step"]) * rate
            lines.append(f"left       {duration(left)} at {rate:.3g} s a step")
        if status.get("last_error"):
            lines.append(f"last error {status['last_error']}")
    for attempt in attempts[-_SHOWN_ATTEMPTS:]:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.began_at))
        step = "" if attempt.step is None else f", step {attempt.step:,}"
        end = "runs" if attempt.ended_at is None else attempt.reason
        lines.append(f"attempt {attempt.number:<2} {began}, {duration(attempt.seconds)}{step}: {end}")
    share = goodput(attempts, status)
    if share is not None:
        lines.append(f"goodput    {100 * share:.0f}% of {duration(sum(attempt.seconds for attempt in attempts))}")
    return lines


def show_logs(run_dir, worker=None, follow=False):
    """Prints a launcher's log, or a worker's; returns an exit code.

    Args:
        run_dir: the run directory.
        worker: number of a worker; None for the launcher's log, or worker 0's if there is none.
        follow: whether to go on printing until the launcher ends.
    """
    folder = job_folder(run_dir, os.environ)
    names = [f"worker-{worker}.log"] if worker is not None else [LOG, "worker-0.log"]
    paths = [os.path.join(folder, "logs", name) for name in names]
    path = next((path for path in paths if os.path.exists(path)), None)
    if path is None:
        say(f"there is no log {' or '.join(paths)}: only jobs with --detach and jobs of several processes keep one")
        return WRONG_INPUT
    with open(path, "rb") as file, contextlib.suppress(KeyboardInterrupt):
        while True:
            ended = not follow or find(folder) is None
            while content := file.read(1 << 16):
                sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            if ended:
                break
            time.sleep(_POLL_SECONDS)
    return 0


def stop(run_dir):
    """Asks the launcher of a run to save and stop, and waits; returns an exit code.

    A second Ctrl-C, or one `stop` more, does not hurry it: its own grace time ends it.
    """
    folder = job_folder(run_dir, os.environ)
    record = find(folder)
    if record is None:
        say(f"no launcher runs in {run_dir} on this machine")
        return WRONG_INPUT
    with contextlib.suppress(ProcessLookupError):
        os.kill(record["pid"], signal.SIGTERM)
    say(f"process {record['pid']} was asked to save and stop")
    while find(folder):
        time.sleep(_POLL_SECONDS)
    ended = _read(folder)
    say(f"it ended with {describe(ended['code'])}" if "code" in ended else "it is gone")
    return 0


def duration(seconds):
    """Returns a time span for a person."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _began(pid):
    """Returns when a process began, as the system counts; None if it does not run (any more)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None if os.path.isdir("/proc/self") else _is_there(pid)
    return None if fields[0] == b"Z" else int(fields[19])


def _is_there(pid):
    """Returns 0 if a process runs, else None: all there is to know on systems without /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        """It is somebody else's."""
    return 0


def _read(folder):
    try:
        with open(os.path.join(folder, FILE), encoding="utf-8") as file:
            record = json.load(file)
        return record if {"pid", "began", "host"} <= set(record) else None
    except (OSError, ValueError, TypeError):
        return None


def _write(folder, record):
    with contextlib.suppress(OSError):  # a launcher without a record is worth more than none
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, FILE)
        with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        os.replace(file.name, path)
