"""Waiting for what another process does."""

import time

DEADLINE_SECONDS = 60


def eventually(condition, what):
    """Polls until a condition holds and returns what it returned; fails after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value
