"""Becomes a command whose output goes to a file, once no process of an earlier start of the same trial is left.

    python logged.py LOG LOCK CORES COMMAND...

LOCK is a file that is held until the command ends, however it ends: so a sweep that was killed and is started again at once
waits for the trials that still save. CORES are processor numbers with commas between, or empty for all. Standard library
only: it starts in milliseconds.
"""

import os
import sys
import time

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None


def main(log, lock, cores, command):
    """Replaces this process by the command; returns an exit code if that fails."""
    for path in (log, lock):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is not None:
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            print(f"launch: cannot lock {lock}: {error}", file=sys.stderr, flush=True)
    os.set_inheritable(held, True)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.write(1, f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n".encode())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"launch: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
    return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
