"""The ledger of a sweep: what was asked for, which trials there are, and what became of each; JSON lines on disk.

A line is appended, and is on the disk, before what it tells of is acted upon. A sweep that is killed leaves a torn line at
most, which is passed over and cut off; so whatever the ledger says holds, and whatever it does not say can be done again.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time

from launch.sweep.space import hash_of, key_of

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

FILE, LOCK = "ledger.jsonl", "sweep.lock"
_PATIENCE_SECONDS = 0.5  # who only asks for the holder of a lock holds it for a moment
WAITING, RUNNING, SUBMITTED, FINISHED, FAILED, STOPPED, PRUNED = (
    "waiting",
    "running",
    "submitted",
    "finished",
    "failed",
    "stopped",
    "pruned",
)


@dataclasses.dataclass
class Trial:
    """One set of parameters and what became of it.

    Attributes:
        number: from 1 on, in the order in which trials were added; stays.
        name: of its folder.
        parameters: tuple of (name, text of the value).
        state: `waiting`, `running` (or its sweep was killed), `submitted` to a cluster, `finished`, `failed`, `stopped`
            (goes on when the sweep does) or `pruned`.
        code: exit code of the last attempt that ended, or None.
        error: what the trainer said last, of a trial that failed, or None.
        starts: how often it was started.
        began_at: when it was last started, seconds since 1970, or None.
        seconds: how long it has run, over all attempts that ended.
        to_be_pruned: whether the search has given it up.
    """

    number: int
    name: str
    parameters: tuple
    state: str = WAITING
    code: int | None = None
    error: str | None = None
    starts: int = 0
    began_at: float | None = None
    seconds: float = 0.0
    to_be_pruned: bool = False

    @property
    def key(self):
        """What is the same for the same set of parameters, however it is written."""
        return key_of(self.parameters)

    @property
    def hash(self):
        """Eight digits that stand for the set of parameters."""
        return hash_of(self.parameters)


class Ledger:
    """The ledger in the folder of a sweep.

    Attributes:
        request: the newest dict of what was asked for, or None.
        trials: {number: `Trial`}.

    Args:
        folder: of the sweep.

    Raises:
        ValueError: if a line is no event of a sweep, with its number.
    """

    def __init__(self, folder):
        self.folder = str(folder)
        self.request = None
        self.trials = {}
        self._path = os.path.join(self.folder, FILE)
        self._good_bytes = 0
        self._descriptor = None
        self._read()

    def append(self, kind, **content):
        """Adds an event, and returns when it is on the disk.

        Args:
            kind: `request`, `trial`, `start`, `submitted`, `prune` or `end`.
            content: what JSON can hold.
        """
        event = {"event": kind, "at": round(time.time(), 3), **content}
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        self._open()
        try:
            os.write(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # a full disk may have taken a part of the line
                os.ftruncate(self._descriptor, self._good_bytes)
            raise
        self._good_bytes += len(line)
        self._apply(json.loads(line))

    def add(self, parameters, name):
        """Adds a trial.

        Args:
            parameters: tuple of (name, text).
            name: function from the trial's number to the name of its folder.

        Returns:
            The `Trial`.
        """
        number = max(self.trials, default=0) + 1
        self.append("trial", trial=number, name=name(number), hash=hash_of(parameters), parameters=parameters)
        return self.trials[number]

    def close(self):
        """Closes the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self):
        if self._descriptor is not None:
            return
        os.makedirs(self.folder, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._descriptor, self._good_bytes)  # cuts off a torn line
        folder = os.open(self.folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(folder)
        os.close(folder)

    def _read(self):
        try:
            with open(self._path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._good_bytes = len(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self._path} line {number} is no event of a sweep ({error}): {line[:80]!r}"
                ) from None

    def _apply(self, event):
        kind = event["event"]
        if kind == "request":
            self.request = event["request"]
            return
        number = event["trial"]
        if kind == "trial":
            self.trials[number] = Trial(number, event["name"], tuple(map(tuple, event["parameters"])))
            return
        trial = self.trials[number]
        if kind == "start":
            trial.state, trial.began_at, trial.starts = RUNNING, event["at"], trial.starts + 1
            trial.code = trial.error = None
        elif kind == "submitted":
            trial.state = SUBMITTED
        elif kind == "prune":
            trial.to_be_pruned = True
        elif kind == "end":
            trial.state, trial.code, trial.error = event["state"], event.get("code"), event.get("error")
            trial.seconds += event.get("seconds") or 0.0
        else:
            raise ValueError(f"unknown event {kind!r}")


class SweepLock:
    """Holds a sweep's folder for this process, as a context manager; the kernel frees it when the process dies.

    Raises:
        ValueError: on entering, if another process holds it.
    """

    def __init__(self, folder):
        self._folder = str(folder)
        self._descriptor = None

    def __enter__(self):
        os.makedirs(self._folder, exist_ok=True)
        self._descriptor = os.open(os.path.join(self._folder, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not _lock(self._descriptor):
            if time.monotonic() > deadline:
                holder = _content(self._descriptor)
                os.close(self._descriptor)
                raise ValueError(
                    f"process {holder['pid']} on {holder['host']} runs the sweep in {self._folder}: look at it with "
                    "`launch/sweep.sh status`, end it with `launch/sweep.sh stop`, or give this one another --run_dir"
                )
            time.sleep(_PATIENCE_SECONDS / 10)
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        return self

    def __exit__(self, *exception):
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def holder_of(folder):
    """Returns the dict, with `pid` and `host`, of the process that runs the sweep of a folder, or None."""
    try:
        descriptor = os.open(os.path.join(folder, LOCK), os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _lock(descriptor) else _content(descriptor)
    finally:
        os.close(descriptor)


def _content(descriptor):
    unknown = {"pid": "?", "host": "?"}
    try:
        return unknown | json.loads(os.pread(descriptor, 1 << 12, 0))
    except (ValueError, TypeError):  # it has just begun
        return unknown


def _lock(descriptor):
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
