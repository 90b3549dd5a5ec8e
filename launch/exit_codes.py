"""What the trainer's exit codes say, and what a launcher does about them.

code                                what happens
0, finished                         the job ends
2, wrong configuration or input     the job ends: it would end so again
70, training failed                 the job ends
74, storage failed                  the job ends
75, preempted, state saved          starts again
124, hung                           starts again; the launcher's own code: it found no sign of life and killed the job
128 + n, killed by signal n (lost)  starts again
anything else, a crash              the job ends
"""

import contextlib
import signal

FINISHED, WRONG_INPUT, FAILED, STORAGE, PREEMPTED = 0, 2, 70, 74, 75
HUNG = 124

# When the workers of a job end differently, one is the cause and the rest follow from it: a lost worker or a preempted one
# makes its peers fail, and a fault of the chief's storage or of everyone's configuration comes before a failed collective.
_CAUSES = (WRONG_INPUT, STORAGE, PREEMPTED, FAILED)
_MEANINGS = {
    FINISHED: "finished",
    WRONG_INPUT: "wrong configuration or input",
    FAILED: "training failed",
    STORAGE: "storage failed",
    PREEMPTED: "preempted, state saved",
    HUNG: "gave no sign of life",
}


def is_lost(code):
    """Returns whether an exit code stands for death by a signal (128 + n); None, for a worker that runs, does not."""
    return code is not None and 128 < code <= 192


def worth_restarting(code):
    """Returns whether the job may go on when it is started again."""
    return code in (PREEMPTED, HUNG) or is_lost(code)


def signal_name(code):
    """Returns the name of the signal n of an exit code 128 + n."""
    with contextlib.suppress(ValueError):
        return signal.Signals(code - 128).name
    return f"signal {code - 128}"


def describe(code):
    """Returns in words how a process ended."""
    if is_lost(code):
        return f"killed by {signal_name(code)}"
    meaning = _MEANINGS.get(code)
    return f"exit code {code}: {meaning}" if meaning else f"exit code {code}"


def cause(codes):
    """Returns the exit code of a job from those of its workers, of which some may still run (None)."""
    failed = [code for code in codes if code]
    lost = [code for code in failed if is_lost(code)]
    if lost:
        return lost[0]
    for code in _CAUSES:
        if code in failed:
            return code
    if failed:
        return failed[0]
    # Only what was killed when the time to stop was over has no code.
    return 0 if None not in codes else 128 + signal.SIGKILL
