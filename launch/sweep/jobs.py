"""The jobs of trials in a Slurm cluster, asked and ended through the commands of `launch/slurm.sh`."""

import os
import subprocess

from launch.attempts import Attempts
from launch.run_files import job_folder

_TIMEOUT_SECONDS = 120
_ENDED = "has ended"  # what `status` says of a job that is not in Slurm's queue


def is_queued(plan, trial):
    """Returns whether the job of a trial waits or runs; None if that cannot be told now.

    Args:
        plan: `Plan`.
        trial: `Trial`.
    """
    done = _command(plan, trial, "status")
    if done is None:
        return None
    return done.returncode == 0 and _ENDED not in done.stdout


def cancel(plan, trial):
    """Lets the job of a trial save and stop, or takes it out of the queue."""
    _command(plan, trial, "stop")


def last_code(plan, trial):
    """Returns the exit code of the last attempt of a trial's job, None if it is not known."""
    attempts = Attempts(job_folder(plan.run_dir(trial), os.environ)).read()
    return attempts[-1].code if attempts else None


def _command(plan, trial, verb):
    try:
        return subprocess.run(
            [plan.script, verb, "--run_dir", plan.run_dir(trial)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
