"""Replaying a step: exactly the same examples, masks and dropout again, with a look inside."""

import dataclasses

import numpy as np
import tensorflow as tf
from rich.table import Table

from trainer.errors import InputError
from trainer.training.initial_weights import check_vocabulary
from trainer.training.run_directory import read_metrics
from trainer.training.step import of_the_whole

_SHOWN = 8
_SHOWN_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a replayed step did.

    Attributes:
        step: its number, as in `metrics.jsonl`.
        metrics: dict of the step's metrics.
        gradient_norms: `{parameter name: float}`.
        example_losses: `[global batch]` float32, the part each example has in the loss.
        examples: dict of NumPy arrays `[global batch, ...]`, by index in the global batch.
    """

    step: int
    metrics: dict
    gradient_norms: dict
    example_losses: np.ndarray
    examples: dict


def replay_step(assembly, state, manager, step, report=print):
    """Runs a step again from the newest checkpoint before it.

    Args:
        assembly: the `Assembly`; of one process.
        state: a fresh `TrainState`.
        manager: `CheckpointManager` of the run.
        step: number of the step, from 1.
        report: callable that shows one line to a person.

    Returns:
        `Replay`.

    Raises:
        InputError: if there is no such step.
    """
    run, cluster = assembly.run, assembly.cluster
    if not 1 <= step <= run.steps:
        raise InputError(f"--step {step}: the run has steps 1 to {run.steps}")
    if cluster.num_processes > 1:
        raise InputError(
            "a step is replayed by one process, on any number of its devices: use strategy 'cpu' or 'auto'"
        )
    earlier = [number for number in manager.steps() if number < step]
    start = earlier[-1] if earlier else 0
    if earlier:
        manager.restore(start)
        check_vocabulary(manager, start, assembly.task.vocabulary_sha256)
    elif run.initial_weights:
        assembly.load_initial_weights(state)
    report(
        f"replaying step {step} from step {start}" + (f": {step - 1 - start} steps lie between" * (step - 1 > start))
    )
    train_step = assembly.train_step(state)
    iterator = assembly.training_iterator(start)
    if step - 1 > start:
        train_step.loop(iterator, tf.constant(step - 1 - start))
    examples = next(iterator)
    gradients, losses = train_step.inspect(examples)
    parts = {
        name: np.concatenate([part.numpy() for part in cluster.strategy.experimental_local_results(value)])
        for name, value in examples.items()
    }
    losses = np.concatenate([part.numpy() for part in cluster.strategy.experimental_local_results(losses)])
    order = np.argsort(parts["example_index"])
    metrics = train_step.one(examples).numpy()
    values = dict(zip(train_step.metric_names, metrics.tolist(), strict=True))
    task_values = assembly.task.report({name: values.pop(name) for name in assembly.task.metric_names})
    return Replay(
        step=step,
        metrics=of_the_whole(values) | task_values,
        gradient_norms={
            parameter.name: float(np.linalg.norm(gradient.numpy()))
            for parameter, gradient in zip(state.parameters, gradients, strict=True)
        },
        example_losses=losses[order],
        examples={name: value[order] for name, value in parts.items()},
    )


def show_replay(replay, assembly, console):
    """Prints a replayed step for a person.

    Args:
        replay: `Replay`.
        assembly: the `Assembly`.
        console: `rich.console.Console`.
    """
    logged = [
        record
        for record in read_metrics(assembly.directory.metrics_path)
        if record["step"] == replay.step and record["kind"] == "train"
    ]
    table = Table(title=f"step {replay.step}", title_justify="left")
    for column in ("metric", "now", "in metrics.jsonl"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, value in replay.metrics.items():
        before = logged[-1].get(name) if logged else None
        table.add_row(name, f"{value:.9g}", "" if before is None else f"{before:.9g}")
    console.print(table)

    table = Table(title="largest gradients", title_justify="left")
    table.add_column("parameter")
    table.add_column("norm", justify="right")

    def badness(item):
        return np.inf if not np.isfinite(item[1]) else item[1]

    for name, norm in sorted(replay.gradient_norms.items(), key=badness, reverse=True)[:_SHOWN]:
        table.add_row(name, f"{norm:.6g}")
    console.print(table)

    losses = np.where(np.isfinite(replay.example_losses), replay.example_losses, np.inf)
    places = assembly.task.example_places(
        seed=assembly.run.seed,
        first_example=(replay.step - 1) * assembly.run.global_batch,
        num_examples=assembly.run.global_batch,
    )
    console.print("examples with the greatest part in the loss", style="italic")
    for index in np.argsort(-losses)[:_SHOWN]:
        text = assembly.task.describe_example(replay.examples, index)
        console.print(f"{index}  {replay.example_losses[index]:.5g}  {places[index]}", style="bold", markup=False)
        console.print(f"  {text[:_SHOWN_CHARACTERS]}", markup=False)
