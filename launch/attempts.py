"""The attempts of a run: when each began and ended, why, and how far it came; kept in the run directory, as JSON lines.

What is paid for is the time from the beginning of an attempt to its end, whatever it was spent on: starting, compiling,
steps that were lost and done again. Goodput is the share of it that went into the steps that the run now has.
"""

import contextlib
import dataclasses
import json
import os
import time

FILE = "attempts.jsonl"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt.

    Attributes:
        number: from 0 on, over the whole life of the run.
        began_at, ended_at: seconds since 1970; `ended_at` is None while it runs, or if its launcher was killed.
        seen_at: when it was last known to run.
        code: exit code of the job; None as `ended_at`.
        step: the last step known to be done, or None.
        reason: in words, why it ended.
    """

    number: int
    began_at: float
    ended_at: float | None = None
    seen_at: float | None = None
    code: int | None = None
    step: int | None = None
    reason: str = ""

    @property
    def seconds(self):
        """How long it lasted, as far as is known."""
        return (self.ended_at or self.seen_at or self.began_at) - self.began_at


class Attempts:
    """The file of attempts of a run.

    A launcher that is killed leaves a line torn at most, which is passed over. A folder that cannot be written to does not
    stop a run.

    Args:
        folder: where the file lies, or is made.
    """

    def __init__(self, folder):
        self.path = os.path.join(folder, FILE)

    def read(self):
        """Returns the list of `Attempt`s."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                return parse_attempts(file.read())
        except OSError:
            return []

    def begin(self):
        """Notes that an attempt begins; returns its number."""
        number = max((attempt.number for attempt in self.read()), default=-1) + 1
        now = time.time()
        self._append({"number": number, "began_at": now, "seen_at": now})
        return number

    def see(self, number, step=None):
        """Notes that an attempt runs, and the last step done, if it is known."""
        self._append({"number": number, "seen_at": time.time()} | ({} if step is None else {"step": step}))

    def end(self, number, code, step=None, reason=""):
        """Notes that an attempt has ended.

        Args:
            number: of the attempt.
            code: exit code of the job.
            step: the last step known to be done, or None.
            reason: in words.
        """
        event = {"number": number, "ended_at": time.time(), "code": code, "reason": reason}
        self._append(event | ({} if step is None else {"step": step}))

    def _append(self, event):
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, (b"\n" if torn else b"") + json.dumps(event).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def parse_attempts(text):
    """Returns the list of `Attempt`s that a file's text tells of; a torn line is passed over."""
    attempts = {}
    names = {field.name for field in dataclasses.fields(Attempt)}
    for line in text.split("\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            known = {name: value for name, value in event.items() if name in names}
            number = known["number"]
            attempts[number] = (
                dataclasses.replace(attempts[number], **known) if number in attempts else Attempt(**known)
            )
    return [attempts[number] for number in sorted(attempts)]


def goodput(attempts, status):
    """Returns the share of the time of all attempts that went into the steps the run has, about; None if not known.

    Args:
        attempts: list of `Attempt`s.
        status: dict of the run's `status.json`, or None.
    """
    paid = sum(attempt.seconds for attempt in attempts)
    if not status or not status.get("seconds_per_step") or not paid:
        return None
    return min(1.0, status["step"] * status["seconds_per_step"] / paid)
