"""Keeps a job running on this machine: starts it, restarts it where that helps, and stops it when asked.

    exit code of the trainer            what happens
    0   finished                        the job ends
    2   wrong configuration or input    the job ends
    70  training failed                 the job ends
    74  storage failed                  the job ends
    75  preempted, state saved          starts again, unless the launcher was asked to stop
    killed by a signal (lost)           starts again
    anything else (a crash)             the job ends

When one of several workers ends with anything but 0, the others cannot go on without it and are stopped too.
"""

import contextlib
import math
import signal
import sys
import time

from launch.processes import Workers

PREEMPTED = 75
# When workers end differently, one is the cause and the rest follow from it: a lost worker or a preempted one makes its
# peers fail, and a fault of the chief's storage or of everyone's configuration comes before a failed collective.
_CAUSES = (2, 74, PREEMPTED, 70)
_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 1.0  # how long to look for the cause before the others are stopped
_HURRY_SECONDS = 5.0  # what a second Ctrl-C leaves


def supervise(
    make_commands,
    *,
    log_folder=None,
    max_restarts=3,
    grace_seconds=120.0,
    takedown_seconds=10.0,
    backoff_seconds=1.0,
):
    """Runs a job to its end, restarting it after preemption and lost workers.

    SIGTERM, SIGHUP and a first SIGINT (Ctrl-C) go on to the workers, which save and stop within the grace time; a
    second SIGINT leaves them 5 seconds, a third none. No process of the job is left when this returns, nor when this
    process is killed.

    Args:
        make_commands: a function from the attempt's number (0 the first) to a list of `launch.processes.Command`, one
            per worker; called for every attempt, so that each gets fresh ports.
        log_folder: where the logs of several workers are kept.
        max_restarts: how often the job may be started again.
        grace_seconds: how long workers may take to save and stop when this process is asked to stop.
        takedown_seconds: how long they may take when one of them is lost; there is no one left to save with.
        backoff_seconds: the wait before the first restart; it doubles with each, up to a minute.

    Returns:
        The exit code of the job: the trainer's.
    """
    with _StopRequests() as stop:
        for attempt in range(max_restarts + 1):
            workers = Workers(make_commands(attempt), log_folder, grace_seconds)
            try:
                code = _run(workers, stop, grace_seconds, takedown_seconds)
            finally:
                workers.close()
            if stop.signals or not (code == PREEMPTED or _is_lost(code)):
                return code
            lost = f"a worker was lost ({_named(code)})"
            reason = "the job was preempted and saved its state" if code == PREEMPTED else lost
            if attempt == max_restarts:
                _say(f"{reason}; not started again after {max_restarts} restarts (--max_restarts)")
                return code
            wait = min(60.0, backoff_seconds * 2**attempt)
            _say(f"{reason}; starting again in {wait:g} s (restart {attempt + 1} of {max_restarts})")
            if stop.wait(wait):
                return PREEMPTED
    raise AssertionError("the loop always returns")


def _run(workers, stop, grace_seconds, takedown_seconds):
    """Watches the workers of one attempt until they have ended or their time is over; returns the job's exit code."""
    forwarded, deadline, cause = 0, math.inf, None
    while None in (codes := workers.codes()) and time.monotonic() < deadline:
        for number in stop.signals[forwarded:]:
            forwarded += 1
            interrupts = stop.signals[:forwarded].count(signal.SIGINT)
            seconds = grace_seconds if interrupts < 2 else _HURRY_SECONDS if interrupts == 2 else 0.0
            deadline = min(deadline, time.monotonic() + seconds)
            _say(f"{signal.Signals(number).name}: the job has {seconds:g} s to save and stop")
            workers.send(number)
        if cause is None and any(codes):
            workers.wait(_SETTLE_SECONDS)
            codes = workers.codes()
            cause = _cause(codes)
            if None in codes and not (cause == PREEMPTED and forwarded):
                _say(f"{_ended(codes)}; stopping the others")
                workers.send(signal.SIGTERM)
            # A preempted worker's peers are saving the same step; a lost worker's peers can only be stopped.
            deadline = min(deadline, time.monotonic() + (grace_seconds if cause == PREEMPTED else takedown_seconds))
        time.sleep(_POLL_SECONDS)
    codes = workers.codes()
    if None in codes:
        _say("the time to stop is over: killing what is left")
    return _cause(codes) if cause is None else cause


def _cause(codes):
    """Returns the exit code of the job from those of its workers, of which some may still run (None)."""
    failed = [code for code in codes if code]
    lost = [code for code in failed if _is_lost(code)]
    if lost:
        return lost[0]
    for code in _CAUSES:
        if code in failed:
            return code
    if failed:
        return failed[0]
    # Only what was killed when the time to stop was over has no code.
    return 0 if None not in codes else 128 + signal.SIGKILL


def _is_lost(code):
    """Returns whether an exit code stands for death by a signal (128 + n)."""
    return code is not None and 128 < code <= 192


def _ended(codes):
    return "; ".join(
        f"worker {index} ended with {_named(code) if _is_lost(code) else f'exit code {code}'}"
        for index, code in enumerate(codes)
        if code
    )


def _named(code):
    with contextlib.suppress(ValueError):
        return signal.Signals(code - 128).name
    return f"signal {code - 128}"


def _say(text):
    with contextlib.suppress(OSError):
        print(f"launch: {text}", file=sys.stderr, flush=True)


class _StopRequests:
    """Notes signals that ask this process to stop, while it is in effect.

    Attributes:
        signals: the numbers of the signals received so far.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self):
        self.signals = []
        self._before = {}

    def __enter__(self):
        for number in self._NUMBERS:
            self._before[number] = signal.signal(number, lambda number, _: self.signals.append(number))
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds):
        """Waits; returns early, and True, if a signal comes."""
        deadline = time.monotonic() + seconds
        while not self.signals and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return bool(self.signals)
