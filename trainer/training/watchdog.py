"""The watchdog: when no step ends for too long, it writes down where every thread hangs."""

import contextlib
import faulthandler
import glob
import os
import re
import socket
import tempfile
import threading
import time

import tensorflow as tf

from trainer import storage
from trainer.errors import InputError, StorageFailed
from trainer.training.heartbeat import Heartbeat

_STORAGE_ERRORS = (OSError, tf.errors.OpError, StorageFailed)


class Watchdog:
    """Writes all threads' stacks to `stacks-<host>-<pid>-<n>.txt` if no beat comes for a while; a context manager.

    The timer is `faulthandler.dump_traceback_later`, a C thread that needs no interpreter lock: it works also while a
    thread hangs inside C++ with the lock held. A Python thread only winds the timer up and tells a person of the file.
    The timer exists once in a process, and so must the watchdog.

    Args:
        timeout_seconds: how long without a beat is too long; also the least time between two files.
        folder: where the files go, local or `gs://`.
        report: callable that shows one line to a person.
        heartbeat: `Heartbeat`, told of every beat and of when the next one is due.
    """

    def __init__(self, timeout_seconds, folder, report=print, heartbeat=None):
        if not timeout_seconds > 0:
            raise InputError(f"the watchdog's timeout_seconds must be positive, got {timeout_seconds}")
        self._timeout_seconds = float(timeout_seconds)
        self._folder = str(folder)
        self._report = report
        self._heartbeat = heartbeat or Heartbeat(None)
        self._condition = threading.Condition()
        self._running = False
        self._thread = None
        self._file = None
        self._number = 0
        self._step = None
        self._allowances = []
        self._last_beat = self._deadline = 0.0
        self._armed = None  # the deadline for which the timer is set
        self._complained = False

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self.stop()

    def start(self):
        """Begins to watch; does nothing if it already does."""
        if self._running:
            return
        if not storage.is_remote(self._folder):
            _remove_empty_files(self._folder)
        self._running = True
        self._restart_clock()
        with self._condition:
            self._wind_up()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self):
        """Ends watching and removes the empty file that lay ready."""
        with self._condition:
            if not self._running:
                return
            self._running = False
            self._condition.notify()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._close_file()
        self._heartbeat.write(float("inf"), self._step)

    def beat(self, step):
        """Says that a step has ended.

        Args:
            step: its number, for the report.
        """
        # Only assignments: the watchdog's thread sees them in time, so that a beat costs the training loop nothing.
        self._step = step
        self._restart_clock()

    @contextlib.contextmanager
    def allowance(self, seconds=None):
        """Grants a block of code more time, such as compilation or evaluation; its end counts as a beat.

        Args:
            seconds: the time without a beat granted within the block; None for any.
        """
        self._change_allowance(self._allowances.append, float("inf") if seconds is None else float(seconds))
        try:
            yield
        finally:
            self._change_allowance(self._allowances.pop)

    def _change_allowance(self, change, *args):
        with self._condition:
            change(*args)
            self._restart_clock()
            if self._running:
                self._wind_up()
                self._condition.notify()

    def _restart_clock(self):
        self._last_beat = now = time.monotonic()
        self._deadline = now + (self._allowances[-1] if self._allowances else self._timeout_seconds)
        self._heartbeat.write(self._deadline, self._step)

    def _watch(self):
        """Winds the timer up again four times a timeout, and reports when it has gone off."""
        with self._condition:
            while self._running:
                now = time.monotonic()
                if self._armed is not None and now > self._armed:
                    if self._armed == self._deadline:
                        self._tell(now)
                        self._deadline = now + self._timeout_seconds  # silent for that long, if still no beat comes
                    self._armed = None
                if self._armed != self._deadline:
                    self._wind_up()
                until_due = self._deadline - time.monotonic() + 0.05
                self._condition.wait(max(0.01, min(self._timeout_seconds / 4, until_due)))

    def _wind_up(self):
        """Sets the timer to the deadline."""
        self._armed = None
        faulthandler.cancel_dump_traceback_later()
        deadline = self._deadline
        if deadline == float("inf"):
            return
        try:
            if self._file is None:
                self._open_file()
            self._file.truncate(0)  # a beat may have come in the very moment the timer went off
            faulthandler.dump_traceback_later(max(deadline - time.monotonic(), 0.001), exit=False, file=self._file)
            self._armed = deadline
        except _STORAGE_ERRORS as error:
            if not self._complained:
                self._report(f"warning: the watchdog cannot write to {self._folder}: {error}; trying again")
            self._complained = True

    def _open_file(self):
        self._number += 1
        name = f"stacks-{socket.gethostname()}-{os.getpid()}-{self._number}.txt"
        if storage.is_remote(self._folder):
            self._target = storage.join(self._folder, name)
            path = os.path.join(tempfile.mkdtemp(prefix="bert-trainer-stacks-"), name)
        else:
            os.makedirs(self._folder, exist_ok=True)
            path = self._target = os.path.join(self._folder, name)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the timer

    def _tell(self, now):
        """The timer has gone off: completes the file and reports it."""
        waited = now - self._last_beat
        where = "yet" if self._step is None else f"after step {self._step}"
        faulthandler.cancel_dump_traceback_later()  # waits until all stacks are written
        try:
            if os.path.getsize(self._file.name) == 0:  # we were a moment faster than the timer
                faulthandler.dump_traceback(self._file, all_threads=True)
            self._file.write(f"\nno step ended for {waited:.0f} s {where}, host {socket.gethostname()}\n")
            self._file.flush()
            if self._target != self._file.name:
                storage.copy_file(self._file.name, self._target)
            told = f"the stacks of all threads are in {self._target}"
        except _STORAGE_ERRORS as error:
            told = f"the stacks of all threads could not be written: {error}"
        self._close_file()
        self._report(
            f"warning: no step ended for {waited:.0f} s {where}; {told}. The run goes on waiting; if it hangs, stop it "
            "and start it again: it resumes from its last checkpoint."
        )

    def _close_file(self):
        if self._file is None:
            return
        path, self._file = self._file.name, self._file.close()
        with contextlib.suppress(OSError):
            if os.path.getsize(path) == 0 or path != self._target:
                os.remove(path)
            if path != self._target:
                os.rmdir(os.path.dirname(path))


def _remove_empty_files(folder):
    """Removes what killed processes of this host left ready and never filled."""
    host = socket.gethostname()
    for path in glob.glob(os.path.join(glob.escape(folder), f"stacks-{glob.escape(host)}-*.txt")):
        match = re.fullmatch(r"(\d+)-\d+\.txt", os.path.basename(path)[len(f"stacks-{host}-") :])
        with contextlib.suppress(OSError):
            if match and os.path.getsize(path) == 0:
                try:
                    os.kill(int(match.group(1)), 0)
                except ProcessLookupError:
                    os.remove(path)
