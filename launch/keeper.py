"""Keeps one worker: runs a command and makes sure that it ends when the launcher does, however the launcher ends.

    python keeper.py PIPE GRACE_SECONDS COMMAND...

The launcher holds the other end of the pipe. When the launcher dies, even by SIGKILL, the pipe closes; the worker is
then asked to stop (SIGTERM), and after the grace time its whole process group is killed, with this process in it.
Signals sent to the keeper go on to the worker alone, so that it, not its helper processes, decides how to stop. The
keeper ends with the worker's exit code, or 128 + n if signal n killed it. Standard library only: it starts in
milliseconds.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_POLL_SECONDS = 0.05


def main(pipe, grace_seconds, command):
    """Runs the command to its end; returns its exit code, 128 + n for signal n."""
    early = []
    worker = None

    def forward(number, _):
        if worker is None:
            early.append(number)
        else:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    try:
        worker = subprocess.Popen(command)
    except OSError as error:
        print(f"launch: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    for number in early:
        worker.send_signal(number)
    deadline = None
    while (code := worker.poll()) is None:
        if deadline is None:
            readable, _, _ = select.select([pipe], [], [], _POLL_SECONDS)
            if readable:  # nothing is ever written: the launcher is gone
                worker.terminate()
                deadline = time.monotonic() + grace_seconds
        elif time.monotonic() > deadline:
            os.killpg(0, signal.SIGKILL)
        else:
            time.sleep(_POLL_SECONDS)
    if deadline is not None:  # nobody is left to clear away what the worker itself started
        os.killpg(0, signal.SIGKILL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
