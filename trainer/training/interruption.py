"""Being asked to stop: SIGTERM, Ctrl-C, or anything else that says this machine will go away."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

# A launcher that forwards Ctrl-C doubles what the terminal already sent to the whole process group.
_SAME_PRESS_SECONDS = 0.5
_INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it


class Interruption:
    """Notices requests to stop while training goes on; a context manager for the main thread.

    SIGTERM and a first Ctrl-C only set `requested`: the loop saves at its next step boundary and ends. A second Ctrl-C
    ends the process at once. Signals arrive through a wake-up descriptor and a thread, because Python's own handlers
    wait until the main thread returns from TensorFlow, which can take minutes while it compiles.

    Args:
        watchers: callables that return a reason to stop (a text) or None, each asked every `poll_seconds` in a thread
            of its own; for example one that asks a cloud's metadata server.
        poll_seconds: pause between two questions.
        report: callable that shows one line to a person.

    Attributes:
        requested: whether the run should stop at the next step boundary.
        reason: why, in words; None before.
    """

    def __init__(self, *, watchers=(), poll_seconds=5.0, report=print):
        self._watchers = tuple(watchers)
        self._poll_seconds = poll_seconds
        self._report = report
        self._event = threading.Event()
        self._closed = threading.Event()
        self._mutex = threading.Lock()
        self._first_press = None
        self.reason = None

    @property
    def requested(self):
        """Whether the run should stop at the next step boundary."""
        return self._event.is_set()

    def wait(self, timeout_seconds):
        """Waits for a request at most so long; returns whether there is one."""
        return self._event.wait(timeout_seconds)

    def request(self, reason):
        """Asks the run to stop, as a signal does; the first reason stays.

        Args:
            reason: for a person, such as `SIGTERM` or `host 3 received SIGTERM`.
        """
        with self._mutex:
            if self._event.is_set():
                return
            self.reason = reason
            self._event.set()
        again = " again" if self._first_press is not None else ""
        self._report(f"{reason}: saving at the next step boundary, then exiting; press Ctrl-C{again} to exit at once")

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Interruption must be entered in the main thread: only it may install signal handlers")
        self._closed.clear()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # The handlers do nothing; that they exist is what keeps the signals from ending the process.
        self._old_handlers = {
            number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._thread = threading.Thread(target=self._read_signals, name="interruption-signals", daemon=True)
        self._thread.start()
        for watcher in self._watchers:
            threading.Thread(
                target=self._ask, args=(watcher,), name=f"interruption-{_name(watcher)}", daemon=True
            ).start()
        return self

    def __exit__(self, *exception):
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._old_wakeup)
        self._closed.set()
        self._writer.close()  # ends the reader's loop
        self._thread.join()
        self._reader.close()

    def _read_signals(self):
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number == signal.SIGTERM:
                    self.request("SIGTERM received")
                elif number == signal.SIGINT:
                    self._press()

    def _press(self):
        now = time.monotonic()
        if self._first_press is None:
            self._first_press = now
            if self.requested:
                self._report(f"already stopping ({self.reason}); press Ctrl-C again to exit at once")
            self.request("Ctrl-C")
        elif now - self._first_press > _SAME_PRESS_SECONDS:
            _exit_at_once()

    def _ask(self, watcher):
        complained = False
        while not self._closed.is_set() and not self.requested:
            try:
                reason = watcher()
            except Exception as error:  # a watcher that fails must not end training
                reason = None
                if not complained:
                    self._report(f"warning: {_name(watcher)} cannot tell whether to stop: {error}")
                complained = True
            if reason and not self._closed.is_set():
                self.request(str(reason))
            self._closed.wait(self._poll_seconds)


def _exit_at_once():
    """Ends the process without any clean-up, but leaves a usable terminal."""
    with contextlib.suppress(Exception):
        for stream in (sys.stdout, sys.stderr):
            if stream.isatty():
                # A progress bar hides the cursor. Written past Python's buffers, whose locks another thread may hold.
                os.write(stream.fileno(), b"\x1b[?25h\r\n")
                break
        os.write(2, b"exiting at once; the next start resumes from the last checkpoint\n")
    os._exit(_INTERRUPTED_EXIT_CODE)


def _name(watcher):
    return getattr(watcher, "__name__", type(watcher).__name__)
