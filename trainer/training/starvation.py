"""Tells when devices wait for examples, why they probably do, and which setting helps."""

import os
import time

# Waiting less than this is not worth a person's time; less than this long says nothing yet.
_WORTH_TELLING = 0.15
_WINDOW_SECONDS = 30.0
_TELL_EVERY_SECONDS = 1800.0


class StarvationWatch:
    """Adds up the time that steps waited for input.

    Args:
        advise: callable `(share of the processors' time in use) -> text`: the likely cause and what to change.
        report: callable that shows one line to a person.
        window_seconds: how much time of steps is looked at together.
        clock: callable that returns seconds.
        processor_seconds: callable that returns the processor time of this process so far.
    """

    def __init__(
        self,
        advise,
        report,
        window_seconds=_WINDOW_SECONDS,
        clock=time.monotonic,
        processor_seconds=lambda: sum(os.times()[:2]),
    ):
        self._advise, self._report = advise, report
        self._window_seconds, self._clock, self._processor_seconds = window_seconds, clock, processor_seconds
        self._told_at = None
        self._begin()

    def _begin(self):
        self._waited = self._looped = 0.0
        self._began, self._processor_began = self._clock(), self._processor_seconds()

    def add(self, wait_seconds, loop_seconds):
        """Takes in one call of compiled steps.

        Args:
            wait_seconds: of it, spent waiting for input.
            loop_seconds: all of it.
        """
        self._waited += wait_seconds
        self._looped += loop_seconds
        if self._looped < self._window_seconds:
            return
        share, now = self._waited / self._looped, self._clock()
        if share >= _WORTH_TELLING and (self._told_at is None or now - self._told_at >= _TELL_EVERY_SECONDS):
            self._told_at = now
            seconds = max(now - self._began, 1e-9) * (os.cpu_count() or 1)
            busy = min(1.0, (self._processor_seconds() - self._processor_began) / seconds)
            self._report(f"warning: {share:.0%} of the time went into waiting for examples: {self._advise(busy)}")
        self._begin()
