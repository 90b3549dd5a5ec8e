"""The heartbeat: tells the launcher on the same machine until when the next sign of life is due, and the last step done."""

import contextlib
import mmap
import os
import struct

# The launcher sets it: a file of this process's own. `launch/heartbeats.py` reads it.
VARIABLE = "BERT_TRAINER_HEARTBEAT"
_RECORD = struct.Struct("<dq")  # deadline on the machine's monotonic clock, in seconds; step, -1 for none
_NO_STEP = -1


class Heartbeat:
    """Writes the record into a file in shared memory: no system call, so that it costs a step nothing.

    What stands there when the process hangs, or is stopped or killed, stays for the launcher to read.

    Args:
        path: of the file; None or one that cannot be written: nothing happens.
    """

    def __init__(self, path):
        self._memory = None
        if not path:
            return
        with contextlib.suppress(OSError), open(path, "w+b") as file:
            file.write(_RECORD.pack(float("inf"), _NO_STEP))
            file.flush()
            self._memory = mmap.mmap(file.fileno(), _RECORD.size)

    @classmethod
    def from_environment(cls):
        """Returns the heartbeat that the launcher of this process looks at, if it has one."""
        return cls(os.environ.get(VARIABLE))

    def write(self, deadline, step):
        """Says what is known now.

        Args:
            deadline: of the next sign of life, in seconds of `time.monotonic`; infinite if none is due.
            step: the last step done, or None.
        """
        if self._memory is not None:
            _RECORD.pack_into(self._memory, 0, deadline, _NO_STEP if step is None else step)
