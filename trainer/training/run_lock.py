"""The lock with a heartbeat that refuses a second job in the same run directory."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import uuid

import tensorflow as tf

from trainer import storage
from trainer.errors import InputError, StorageFailed
from trainer.storage import google_cloud

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

_STORAGE_ERRORS = (OSError, tf.errors.OpError, StorageFailed)


class RunLock:
    """Holds a run directory for this process, as a context manager.

    The lock is a small JSON record that its owner rewrites every few seconds. A starter that finds one
    - takes it over at once if its owner was a process of this machine which is dead;
    - refuses at once if its owner is a process of this machine which lives (a suspended one too: it may wake up);
    - otherwise watches it: a record that changes has a living owner, one that stands still for `stale_seconds` has
      none. Clocks of two hosts are never compared.

    Args:
        path: the lock file, `RunDirectory.lock_path`.
        heartbeat_seconds: time between two heartbeats.
        stale_seconds: how long a record must stand still before it is taken over; several heartbeats.
        report: callable that shows one line to a person.
        on_lost: callable `(message) -> None`, called once from the heartbeat's thread if another job took the lock over
            (this one was thought dead): training must stop without writing.
        store: where the record lies; chosen by the path if None.
    """

    def __init__(
        self,
        path,
        *,
        heartbeat_seconds=10.0,
        stale_seconds=60.0,
        report=print,
        on_lost=lambda message: None,
        store=None,
    ):
        self.path = str(path)
        self.lost = False
        self._heartbeat_seconds = heartbeat_seconds
        self._stale_seconds = stale_seconds
        self._report = report
        self._on_lost = on_lost
        self._store = store or _store_for(path)
        self._nonce = uuid.uuid4().hex
        self._beat = 0
        self._content = None
        self._stop = threading.Event()
        self._thread = None

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *exception):
        self.release()

    def acquire(self):
        """Takes the lock; may watch the lock of another host for up to `stale_seconds`.

        Raises:
            InputError: if another job holds it.
            StorageFailed: if the lock cannot be written.
        """
        watched, watched_since = None, None
        while True:
            try:
                found = self._store.read()
                expected, verdict = found, "take"
                if found is not None:
                    verdict = self._judge(found)
                if verdict == "watch":
                    if watched is None:
                        watched, watched_since = found, time.monotonic()
                        self._report(
                            f"{self.path} is held by {_owner(found)}; watching for {self._stale_seconds:.0f} s whether "
                            "that job still lives"
                        )
                    elif found != watched and _nonce(found) == _nonce(watched):
                        raise self._refusal(found, time.monotonic() - watched_since)
                    elif found != watched:
                        watched, watched_since = found, time.monotonic()
                    if time.monotonic() - watched_since < self._stale_seconds:
                        time.sleep(min(1.0, self._stale_seconds / 20))
                        continue
                if found is not None:
                    self._report(f"taking over {self.path}: {_owner(found)} is gone without having released it")
                if self._write(expected):
                    break
            except _STORAGE_ERRORS as error:
                raise StorageFailed(f"cannot lock the run directory with {self.path}: {error}") from error
        self._thread = threading.Thread(target=self._keep, name="run-lock-heartbeat", daemon=True)
        self._thread.start()

    def release(self):
        """Gives the lock back; does nothing if it was lost or is not held."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(timeout=self._heartbeat_seconds)
        self._thread = None
        if not self.lost:
            with contextlib.suppress(*_STORAGE_ERRORS):
                self._store.delete(self._content)

    def check(self):
        """Call before writing what must not be written twice.

        Raises:
            InputError: if another job has taken the lock over.
        """
        if self.lost:
            raise InputError(self._lost_message())

    def _judge(self, found):
        """Returns `take` or `watch`, or raises: what to do about a record of somebody else."""
        record = _parse(found)
        here = _machine()
        if record is None or any(record.get(key) != value for key, value in here.items()):
            return "watch"
        if not _process_lives(record["pid"], record.get("process_started")):
            return "take"
        raise self._refusal(found, max(0.0, time.time() - record.get("updated_at", 0.0)))

    def _refusal(self, found, age_seconds):
        record = _parse(found) or {}
        pid, host = record.get("pid", "?"), record.get("host", "?")
        return InputError(
            f"the run directory {os.path.dirname(self.path)} is in use: {_owner(found)} holds it (last heartbeat "
            f"{age_seconds:.0f} s ago). Give this job another --run_dir, or wait for that one to end, or stop it "
            f"(`kill {pid}` on {host}; it saves its state first)."
        )

    def _write(self, expected):
        self._beat += 1
        record = {
            **_machine(),
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "nonce": self._nonce,
            "beat": self._beat,
            "updated_at": time.time(),
        }
        content = (json.dumps(record, indent=2) + "\n").encode("utf-8")
        if not self._store.write(content, expected):
            return False
        self._content = content
        return True

    def _keep(self):
        """Rewrites the record until the lock is released or lost."""
        failing = False
        while not self._stop.wait(self._heartbeat_seconds):
            try:
                if not self._write(self._content):
                    found = self._store.read()
                    if found is None:
                        # Somebody removed the file while we live: put it back.
                        self._write(None)
                    elif _nonce(found) == self._nonce:
                        self._content = found
                    else:
                        self.lost = True
                        self._on_lost(self._lost_message())
                        return
                failing = False
            except _STORAGE_ERRORS as error:
                if not failing:
                    self._report(f"warning: cannot write the heartbeat {self.path}: {error}; training goes on")
                failing = True

    def _lost_message(self):
        return (
            f"another job has taken over {self.path}, because this one gave no heartbeat for {self._stale_seconds:.0f} "
            "s (suspended, or its storage did not answer). This job stops without saving; the other one goes on."
        )


class LocalRecord:
    """The record as a file of a mounted file system; every change is a compare-and-swap.

    Changes happen under `flock`, which the kernel frees when a process dies. The file is rewritten in place, so that
    all contenders lock the same one. Where a file system has no `flock`, the last of several writers wins.
    """

    def __init__(self, path):
        self._path = str(path)

    def read(self):
        """Returns the content, or None if nobody holds the lock."""
        try:
            with open(self._path, "rb") as file:
                return file.read() or None
        except FileNotFoundError:
            return None

    def write(self, content, expected):
        """Replaces `expected` (None: no record) by `content`; returns whether it was there to be replaced."""
        if expected is None:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        with self._opened() as (descriptor, guarded):
            if descriptor is None or (os.pread(descriptor, 1 << 16, 0) or None) != expected:
                return False
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        if guarded or _nonce(expected) == _nonce(content):
            return True
        time.sleep(1.0)  # let every contender write, and see who was last
        return self.read() == content

    def delete(self, expected):
        """Removes the record if it is still `expected`."""
        with self._opened() as (descriptor, _):
            if descriptor is not None and os.pread(descriptor, 1 << 16, 0) == expected:
                os.remove(self._path)

    @contextlib.contextmanager
    def _opened(self):
        """Yields a descriptor of the file (None if there is no file) and whether it is locked against all others."""
        while True:
            descriptor = None
            try:
                with contextlib.suppress(FileNotFoundError):
                    descriptor = os.open(self._path, os.O_RDWR)
                if descriptor is None:
                    yield None, True
                    return
                guarded = fcntl is not None
                try:
                    if guarded:
                        fcntl.flock(descriptor, fcntl.LOCK_EX)
                except OSError:
                    guarded = False
                if self._is_current(descriptor):
                    yield descriptor, guarded
                    return
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def _is_current(self, descriptor):
        """While we waited, the owner may have removed the file, and another starter may have made a new one."""
        try:
            return os.fstat(descriptor).st_ino == os.stat(self._path).st_ino
        except FileNotFoundError:
            return False


class GoogleCloudRecord:
    """The record as an object in Google Cloud Storage; every change holds only for the generation that was read."""

    def __init__(self, path):
        self._path = str(path)
        self._known = (None, 0)  # the content last seen or written, and its generation

    def read(self):
        """Returns the content, or None if nobody holds the lock."""
        self._known = google_cloud.read(self._path)
        return self._known[0]

    def write(self, content, expected):
        """Replaces `expected` (None: no record) by `content`; returns whether it was there to be replaced."""
        if self._known[0] != expected and self.read() != expected:
            return False
        generation = google_cloud.write_if(self._path, content, self._known[1])
        if generation is None:
            return False
        self._known = (content, generation)
        return True

    def delete(self, expected):
        """Removes the record if it is still `expected`."""
        if self._known[0] == expected or self.read() == expected:
            google_cloud.delete_if(self._path, self._known[1])


class StoredRecord:
    """The record in another store that TensorFlow has a file system for: best effort.

    They offer no preconditions, so after a takeover the writer waits a moment and looks whether the record is still its
    own.

    Args:
        path: the object.
        settle_seconds: how long to wait before looking; longer than what the store's client remembers.
    """

    def __init__(self, path, settle_seconds=6.0):
        self._path = str(path)
        self._settle_seconds = settle_seconds

    def read(self):
        """Returns the content, or None if nobody holds the lock."""
        try:
            return storage.read_bytes(self._path) or None
        except tf.errors.NotFoundError:
            return None

    def write(self, content, expected):
        """Replaces `expected` (None: no record) by `content`; returns whether it stayed."""
        if self.read() != expected:
            return False
        storage.write_bytes(self._path, content)
        if expected is None or _nonce(expected) != _nonce(content):
            time.sleep(self._settle_seconds)
            return self.read() == content
        return True

    def delete(self, expected):
        """Removes the record if it is still `expected`."""
        if self.read() == expected:
            storage.remove(self._path)


def _store_for(path):
    if google_cloud.is_google_cloud(path):
        return GoogleCloudRecord(path)
    return StoredRecord(path) if storage.is_remote(path) else LocalRecord(path)


def _parse(content):
    try:
        record = json.loads(content)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("pid"), int) else None


def _nonce(content):
    return None if content is None else (_parse(content) or {}).get("nonce")


def _owner(content):
    record = _parse(content)
    if record is None:
        return "an unreadable record"
    return f"process {record['pid']} on host {record.get('host', '?')}"


def _machine():
    """Returns what tells whether a process number of a record means a process that we can see.

    A host name alone does not: containers share names, and a reboot or another PID namespace gives a number to another.
    """
    machine = {"host": socket.gethostname()}
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            machine["boot_id"] = file.read().strip()
        machine["pid_namespace"] = os.readlink("/proc/self/ns/pid")
    return machine


def _process_lives(pid, started):
    """Returns whether the process of that number is there and is the one that started then."""
    now = _process_started(pid)
    return now is not None and (started is None or now == started)


def _process_started(pid):
    """Returns a text that tells when a process started; None if it is dead (or waits only to be reaped)."""
    if os.path.exists("/proc/self/stat"):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name in parentheses may hold spaces; field 3 is the state, field 22 the start in clock ticks.
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else fields[19].decode("ascii")
    # macOS and the BSDs.
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
