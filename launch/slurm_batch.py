"""The batch script's part on the first node: runs one step, passes on requests to stop, and has the job started again.

    python -m launch.slurm_batch --folder FOLDER --max_restarts 3 -- srun ...

What Slurm does (seen with 22.05), and what follows:

- Before the time limit (`--signal=B:USR1@...`) it sends SIGUSR1 to this process alone. The tasks get SIGTERM, so that they
  save; then the job goes back into the queue.
- Of a preempted job with a grace time the tasks get SIGTERM and this process nothing; the step ends with 75. Nobody puts
  such a job back into the queue but this process.
- A job that is cancelled, or preempted without a grace time, gets SIGTERM everywhere, and SIGKILL after KillWait. Slurm
  itself puts it back where that is due: it is not RUNNING any more.
- SIGTERM to this process alone comes from `launch/slurm.sh stop`: the tasks save, the job ends.
- srun must get no signal: on SIGTERM it kills its tasks. `scancel --signal=TERM JOB` reaches the tasks alone.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time

from launch.attempts import Attempts
from launch.command_line import say
from launch.exit_codes import PREEMPTED, STORAGE, WRONG_INPUT, cause, describe, worth_restarting
from launch.slurm_task import ended_folder

_POLL_SECONDS = 0.2
_AGAIN_SECONDS = 15.0  # a request that came before the tasks had begun reached nobody
_OUT_OF_MEMORY = 253  # srun's code for it


def step_code(code, recorded):
    """Returns the exit code of the job.

    Args:
        code: srun's, the highest of all tasks; death by a signal is above all others.
        recorded: the codes other than 0 that tasks noted themselves.
    """
    for final in (WRONG_INPUT, STORAGE):
        # The others were killed because of it: they waited for this task.
        if final in recorded:
            return final
    # Without cgroups SIGTERM reaches a task several times, the last perhaps when it has saved and is about to end.
    same = {128 + signal.SIGTERM: PREEMPTED, _OUT_OF_MEMORY: 128 + signal.SIGKILL}
    return cause([same.get(each, each) for each in (*recorded, code)])


def restarts_without_progress(attempts, restarts):
    """Returns how often in a row this job was started again without getting any further than before.

    Args:
        attempts: list of `launch.attempts.Attempt`s of the run, the newest last.
        restarts: how often Slurm has started this job again; earlier attempts are those of other jobs.
    """
    own = attempts[-(restarts + 1) :]
    farthest = max((a.step for a in attempts[: len(attempts) - len(own)] if a.step is not None), default=-1)
    in_a_row = -1
    for attempt in own:
        in_a_row += 1
        if attempt.step is not None and attempt.step > farthest:
            farthest, in_a_row = attempt.step, 0
    return max(0, in_a_row)


def why_not_again(code, signals, state, in_a_row, max_restarts):
    """Returns why this process does not put the job back into the queue, in words; None if it does.

    Args:
        code: exit code of the job.
        signals: the signals that this process got.
        state: of the job, in Slurm's words.
        in_a_row: restarts without progress so far.
        max_restarts: how many there may be.
    """
    if code == 0:
        return "the job is finished"
    if signal.SIGTERM in signals:
        return "it was asked to stop (a job that Slurm preempts, Slurm starts again)"
    if not worth_restarting(code):
        return "the job ends"
    if state != "RUNNING":
        return f"Slurm has the job in state {state or 'unknown'}"
    if in_a_row >= max_restarts:
        return f"the job was started again {in_a_row} times without progress (--max_restarts)"
    return None


def _run_step(command, job, signals):
    """Runs the step to its end; returns its exit code."""
    # In a session of its own srun gets no signal that is meant for this process's group.
    step = subprocess.Popen(command, start_new_session=True)
    send_at = 0.0
    while step.poll() is None:
        if signals and time.monotonic() >= send_at:
            say(f"{signals[-1].name}: the tasks save and stop")
            _slurm("scancel", "--signal=TERM", job)
            send_at = time.monotonic() + _AGAIN_SECONDS
        time.sleep(_POLL_SECONDS)
    return step.returncode if step.returncode >= 0 else 128 - step.returncode


def _slurm(*command):
    """Runs a command of Slurm's; returns what it prints, None if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        say(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return None
    return done.stdout.strip()


def _recorded(folder):
    """Returns the exit codes that tasks have noted."""
    codes = []
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), encoding="ascii") as file:
            codes.append(int(file.read() or 1))
    return codes


def main(arguments=None):
    """Runs the command line; returns the exit code of the job."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm_batch", allow_abbrev=False)
    add = parser.add_argument
    add("--folder", required=True, help="of the job")
    add("--max_restarts", type=int, default=3)
    add("command", nargs="+", help="srun and its arguments")
    options = parser.parse_args(arguments)
    signals = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: signals.append(signal.Signals(number)))
    job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
    say(f"job {job} begins on {os.environ.get('SLURM_JOB_NODELIST')}" + (f", restart {restarts}" if restarts else ""))
    folder = ended_folder(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    code = step_code(_run_step(options.command, job, signals), _recorded(folder))
    state = _slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T") if worth_restarting(code) else None
    in_a_row = restarts_without_progress(Attempts(options.folder).read(), restarts)
    reason = why_not_again(code, signals, state, in_a_row, options.max_restarts)
    say(f"{describe(code)}; {reason or 'back into the queue'}")
    if reason is None:
        _slurm("scontrol", "requeue", job)
    return code


if __name__ == "__main__":
    sys.exit(main())
