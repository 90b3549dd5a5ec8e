"""`checkpoint`: how long training stands still for an asynchronous save, and what the writing costs."""

from tools.benchmark import processes
from tools.benchmark.rounds import median, spread
from tools.benchmark.tables import Findings
from trainer.errors import TrainingFailed

_STEPS_BETWEEN = 2


def measure(settings, report):
    """Saves once a round while steps go on.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    with processes.worker("train_step", settings.for_process()) as process:
        report(f"{settings.rounds} saves, {_STEPS_BETWEEN} steps before each")
        answer = process.ask("save", steps_between=_STEPS_BETWEEN, saves=settings.rounds)
        return summarize(settings, process.information["parameters"], answer)


def summarize(settings, parameters, answer):
    """Turns the answer to `save` into findings.

    Args:
        settings: `Settings`.
        parameters: number of the model's parameters.
        answer: dict with `quiet_step_seconds`, `writing_step_seconds` and `saves`, a `SaveInfo` as a dict for each.

    Raises:
        TrainingFailed: if a save failed: then there is nothing to measure.
    """
    saves = answer["saves"]
    failed = [save["error"] for save in saves if save["error"]]
    if failed:
        raise TrainingFailed(f"a checkpoint could not be written: {failed[0]}")
    stalls = [save["wait_seconds"] + save["copy_seconds"] for save in saves]
    writes = [save["write_seconds"] for save in saves]
    size = saves[-1]["bytes"]
    quiet, writing = answer["quiet_step_seconds"], answer["writing_step_seconds"]
    numbers = {
        "bytes": size,
        "stall_seconds": stalls,
        "write_seconds": writes,
        "step_seconds": quiet,
        "step_seconds_while_writing": writing,
    }

    def row(name, values):
        low, middle, high = spread(values)
        return name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"

    rows = [row("training stands still", stalls), row("writing, in the background", writes), row("a step", quiet)]
    if writing:
        rows.append(row("a step while writing", writing))
    notes = (
        f"a checkpoint of {size / 2**20:,.0f} MiB ({parameters:,} parameters with AdamW's slots); "
        f"{size / median(writes) / 2**20:,.0f} MiB/s, checksums included; "
        f"the stall is {median(stalls) / median(quiet):.1%} of a step",
    )
    return Findings("Checkpoint, asynchronous", ("", "seconds", "range"), tuple(rows), notes, numbers)
