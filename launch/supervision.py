"""Keeps a job running on this machine: starts it, restarts it where that helps, and stops it when asked.

`exit_codes` says when starting again helps. When one of several workers ends with anything but 0, the others cannot go on
without it and are stopped too.
"""

import math
import signal
import time

from launch.command_line import say
from launch.exit_codes import HUNG, PREEMPTED, cause, describe, is_lost, signal_name, worth_restarting
from launch.processes import Workers

_POLL_SECONDS = 0.1
_CHECK_SECONDS = 1.0  # how often to look whether workers give signs of life
_SEE_SECONDS = 30.0  # how often to note in the record that the attempt runs
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
    attempts=None,
):
    """Runs a job to its end, restarting it after preemption, lost and hung workers.

    It is given up when it was started again `max_restarts` times without getting any further, or was lost twice in a row
    at the same step. SIGTERM, SIGHUP and a first SIGINT (Ctrl-C) go on to the workers, which save and stop within the
    grace time; a second SIGINT leaves them 5 seconds, a third none. No process of the job is left when this returns, nor
    when this process is killed.

    Args:
        make_commands: a function from the attempt's number (0 the first) to a list of `launch.processes.Command`, one
            per worker; called for every attempt, so that each gets fresh ports.
        log_folder: where the logs of several workers are kept.
        max_restarts: how often in a row the job may be started again without a step more than it had.
        grace_seconds: how long workers may take to save and stop when this process is asked to stop.
        takedown_seconds: how long they may take when one of them is lost; there is no one left to save with.
        backoff_seconds: the wait before the first restart; it doubles with each in a row, up to a minute.
        attempts: `launch.attempts.Attempts` to keep a record in, or None.

    Returns:
        The exit code of the job: the trainer's.
    """
    farthest, lost_at, in_a_row, number = None, None, 0, 0
    with _StopRequests() as stop:
        while True:
            code, step = _attempt(make_commands(number), stop, log_folder, grace_seconds, takedown_seconds, attempts)
            number += 1
            if stop.signals or not worth_restarting(code):
                return code
            reason = _reason(code)
            if code != PREEMPTED and step is not None and step == lost_at:
                say(
                    f"{reason} at step {step}, as the time before: not started again. --mode replay --step {step + 1} looks"
                )
                return code
            lost_at = None if code == PREEMPTED else step
            if step is not None and (farthest is None or step > farthest):
                farthest, in_a_row = step, 0
            if in_a_row == max_restarts:
                after = f" after {max_restarts} restarts without progress (--max_restarts)" if max_restarts else ""
                say(f"{reason}; not started again{after}")
                return code
            wait = min(60.0, backoff_seconds * 2**in_a_row)
            in_a_row += 1
            say(f"{reason}; starting again in {wait:g} s (restart {in_a_row} of {max_restarts})")
            if stop.wait(wait):
                return PREEMPTED


def _attempt(commands, stop, log_folder, grace_seconds, takedown_seconds, attempts):
    """Runs a job once; returns (its exit code, the last step known to be done or None)."""
    number = attempts.begin() if attempts else None
    workers = Workers(commands, log_folder, grace_seconds)

    def see():
        if attempts:
            attempts.see(number, workers.step())

    try:
        code = _run(workers, stop, grace_seconds, takedown_seconds, see)
        step = workers.step()
    finally:
        workers.close()
    if attempts:
        attempts.end(number, code, step, describe(code))
    return code, step


def _run(workers, stop, grace_seconds, takedown_seconds, see):
    """Watches the workers of one attempt until they have ended or their time is over; returns the job's exit code."""
    forwarded, deadline, first, hangs = 0, math.inf, None, False
    seen_at = checked_at = time.monotonic()
    while None in (codes := workers.codes()) and time.monotonic() < deadline:
        for number in stop.signals[forwarded:]:
            forwarded += 1
            interrupts = stop.signals[:forwarded].count(signal.SIGINT)
            seconds = grace_seconds if interrupts < 2 else _HURRY_SECONDS if interrupts == 2 else 0.0
            deadline = min(deadline, time.monotonic() + seconds)
            say(f"{signal.Signals(number).name}: the job has {seconds:g} s to save and stop")
            workers.send(number)
        if first is None and any(codes):
            workers.wait(_SETTLE_SECONDS)
            codes = workers.codes()
            first = cause(codes)
            if None in codes and not (first == PREEMPTED and forwarded):
                say(f"{_ended(codes)}; stopping the others")
                workers.send(signal.SIGTERM)
            # A preempted worker's peers are saving the same step; a lost worker's peers can only be stopped.
            deadline = min(deadline, time.monotonic() + (grace_seconds if first == PREEMPTED else takedown_seconds))
        if not hangs and time.monotonic() - checked_at > _CHECK_SECONDS:
            checked_at = time.monotonic()
            if overdue := workers.overdue():
                hangs = True
                first = HUNG if first is None else first  # a worker that waited for it may have ended before
                names = ", ".join(f"worker {index}" for index in overdue)
                say(f"no sign of life from {names}: stopping the job; stacks of the threads lie in the run directory")
                workers.send(signal.SIGTERM)
                deadline = min(deadline, time.monotonic() + takedown_seconds)
        if time.monotonic() - seen_at > _SEE_SECONDS:
            seen_at = time.monotonic()
            see()
        time.sleep(_POLL_SECONDS)
    codes = workers.codes()
    if None in codes and not hangs:
        say("the time to stop is over: killing what is left")
    return cause(codes) if first is None else first


def _reason(code):
    if code == PREEMPTED:
        return "the job was preempted and saved its state"
    return "the job hung" if code == HUNG else f"a worker was lost ({signal_name(code)})"


def _ended(codes):
    return "; ".join(
        f"worker {index} ended with {signal_name(code) if is_lost(code) else f'exit code {code}'}"
        for index, code in enumerate(codes)
        if code
    )


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
