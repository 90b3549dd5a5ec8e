"""What the workers on this machine say of themselves: when the next sign of life is due, and the last step done."""

import dataclasses
import os
import shutil
import struct
import tempfile
import time

# The trainer writes it, see `trainer/training/heartbeat.py`.
VARIABLE = "BERT_TRAINER_HEARTBEAT"
_RECORD = struct.Struct("<dq")
# At the deadline the trainer writes down the stacks of its threads; so long it is left for that.
_GRACE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Heartbeat:
    """What a worker said last.

    Attributes:
        deadline: when its next sign of life is due, on the machine's monotonic clock; infinite if none is.
        step: the last step it did; None if none.
    """

    deadline: float = float("inf")
    step: int | None = None


class Heartbeats:
    """The heartbeats of the workers of one attempt, in a folder that lives as long as the attempt."""

    def __init__(self):
        self._folder = tempfile.mkdtemp(prefix="bert-trainer-heartbeats-")

    def environment(self, worker):
        """Returns the environment variables that a worker needs; `worker` is its number."""
        return {VARIABLE: self._path(worker)}

    def of(self, worker):
        """Returns the `Heartbeat` of a worker."""
        try:
            with open(self._path(worker), "rb") as file:
                deadline, step = _RECORD.unpack(file.read(_RECORD.size))
        except (OSError, struct.error):
            return Heartbeat()  # it has said nothing yet
        return Heartbeat(deadline, step if step >= 0 else None)

    def is_overdue(self, worker):
        """Returns whether a worker should have given a sign of life some time ago."""
        return time.monotonic() > self.of(worker).deadline + _GRACE_SECONDS

    def close(self):
        """Forgets them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, worker):
        return os.path.join(self._folder, f"worker-{worker}")
