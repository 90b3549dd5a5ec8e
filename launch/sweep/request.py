"""What a command line asks of a sweep: what varies, how trials run, and whether that fits to what was asked before."""

import os

from launch.run_files import is_remote
from launch.sweep import configuration
from launch.sweep.devices import Slot, local_slots
from launch.sweep.space import make_space
from launch.sweep.trials import LOCAL, SLURM, TPU, Plan

_SPACE = ("grid", "zip", "random", "search", "seeds", "trials", "random_seed")
_MANY = 100  # at a time by Slurm, which queues them itself


def request_of(options, job, before):
    """Returns what is asked for, as a dict that JSON can hold: of the command line, or that of before.

    Args:
        options: the parsed options.
        job: `TrainerJob`.
        before: what the sweep was asked for when it last ran, or None.

    Raises:
        ValueError: if it does not fit to what the sweep was begun with, or to itself.
    """
    space = {name: getattr(options, name) for name in _SPACE}
    if not job.gin:
        if before is None:
            raise ValueError(f"there is no sweep in {job.run_dir}: give --gin FILE and what varies")
        if job.gin_param or job.others or options.trials_dir or options.via or any(space[name] for name in _SPACE):
            raise ValueError(
                "without --gin files the sweep goes on as it was asked for before: give them, or nothing else"
            )
        return before
    request = {
        "configuration": configuration.describe(job.gin, job.gin_param),
        "space": space,
        "gin_param": list(job.gin_param),
        "others": list(job.others),
        "via": options.via or LOCAL,
        "trials_dir": options.trials_dir or (before or {}).get("trials_dir"),
    }
    if before is not None:
        if before["trials_dir"] != request["trials_dir"]:
            place = before["trials_dir"] or default_trials_dir(job.run_dir)
            raise ValueError(f"--trials_dir: the trials of this sweep lie in {place}")
        differences = configuration.differences(before["configuration"], request["configuration"])
        if differences:
            raise ValueError(
                f"the sweep in {job.run_dir} was begun with another configuration:\n  "
                + "\n  ".join(differences)
                + "\nIts trials would not be comparable. Use the same, or another --run_dir."
            )
    both = [name for name in space_of(request).names if name in request["configuration"]["parameters"]]
    if both:
        raise ValueError(f"{both[0]} varies, but a --gin_param sets it, too: remove one of them")
    return request


def space_of(request):
    """Returns the `Space` of a request."""
    texts = dict(request["space"])
    return make_space(zipped=texts.pop("zip"), **texts)


def plan_of(options, request, folder):
    """Returns the `Plan` of a request in the folder of a sweep."""
    return Plan(
        folder=folder,
        trials_dir=request["trials_dir"] or default_trials_dir(folder),
        gin=tuple(request["configuration"]["gin"]),
        gin_param=tuple(request["gin_param"]),
        others=tuple(request["others"]),
        via=request["via"],
        max_restarts=options.max_restarts,
        grace_seconds=options.grace_seconds,
    )


def default_trials_dir(folder):
    """Returns where the run directories of a sweep lie if nothing else is said."""
    return os.path.join(folder, "trials")


def slots_of(options, plan, space):
    """Returns the list of `Slot`s, one for each trial that may run at a time.

    Raises:
        ValueError: if there is no such number of equal parts of this machine, or a TPU could not write its run.
    """
    if plan.via == LOCAL:
        return local_slots(options.parallel)
    if plan.via == TPU and not is_remote(plan.trials_dir):
        raise ValueError("--via tpu: a TPU cannot write to this machine; give --trials_dir gs://BUCKET/...")
    return [Slot()] * (options.parallel or (_MANY if plan.via == SLURM and not space.search else 1))


def wanted_of(options):
    """Returns what is said of the metric, for `launch.sweep.metrics.choose`."""
    return {name: getattr(options, name) for name in ("metric", "kind", "goal", "take")}
