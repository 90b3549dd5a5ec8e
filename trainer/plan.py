"""`--mode plan`: what a run would be and cost, without training."""

import dataclasses
import math
import os
import tempfile
import time

import numpy as np
import tensorflow as tf
from rich.table import Table

from trainer.amounts import byte_count, duration, quantity
from trainer.distribution import create_cluster
from trainer.environment import GOOGLE_CLOUD_SETTINGS
from trainer.run import PRECISIONS, assemble
from trainer.storage import google_cloud
from trainer.training.run_directory import RunDirectory

_MEASURED_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would be.

    Attributes:
        lines: `(name, text)` pairs for people, in order.
        parameters: `{part of the model: number of parameters}`.
        memory: `{what: bytes}` of one replica.
    """

    lines: list
    parameters: dict
    memory: dict


def _parts(parameters):
    """Sums parameters by part: layers together, everything else by its name."""
    parts = {}
    for parameter in parameters:
        names = parameter.name.split("/")[1:]
        part = "/".join(names[:2]) if names[0] == "encoder" else names[0]
        part = "encoder/layers" if part.startswith("encoder/layer_") else part
        parts[part] = parts.get(part, 0) + int(np.prod(parameter.shape))
    return parts


def _slot_size(optimizer, parameters):
    """Returns how many numbers an optimizer remembers."""
    return sum(math.prod(shape) for parameter in parameters for shape in optimizer.slots(parameter).values())


def make_plan(arguments, config, run, report):
    """Assembles a run without starting it.

    Args:
        arguments: the command line; with `measure` a few steps are run to estimate the time.
        config: `ResolvedConfig`.
        run: `Run`.
        report: callable that shows one line to a person.

    Returns:
        `Plan`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        cluster = create_cluster(run.strategy, run.devices)
        directory = RunDirectory(arguments.run_dir or scratch, is_chief=False)
        assembly = assemble(run, config, cluster, directory, report)
        task, batch = assembly.task, assembly.batch
        state = assembly.new_state()
        parameters = _parts(state.all_parameters)
        total, trained = sum(parameters.values()), sum(_parts(state.parameters).values())
        compute_bytes = PRECISIONS[run.precision]
        copies = 1 if batch.accumulation == 1 else 2
        memory = {
            "weights": 4 * total,
            "optimizer slots": 4 * _slot_size(run.optimizer, state.parameters),
            "gradients" if copies == 1 else "gradients and their accumulators": 4 * trained * copies,
            f"activations of {batch.microbatch} examples": batch.microbatch * task.activation_bytes(compute_bytes),
        }
        flops = task.training_flops() * run.global_batch
        lines = [
            ("strategy", cluster.describe().removeprefix("strategy ")),
            ("batch", str(batch)),
            ("steps", f"{run.steps:,}"),
            ("examples", f"{run.steps * run.global_batch:,}"),
            ("tokens, padding included", f"{run.steps * run.global_batch * task.tokens_per_example:,}"),
            *task.describe_data(run.steps * run.global_batch),
            ("model operations", f"{quantity(flops)}FLOP a step, {quantity(flops * run.steps)}FLOP in all"),
        ]
        if any(google_cloud.is_google_cloud(path) for path in (arguments.run_dir, *run.task.data.paths)):
            settings = (f"{name}={os.environ.get(name, '')}" for name in GOOGLE_CLOUD_SETTINGS)
            lines.append(("Google Cloud Storage", "\n".join(settings)))
        if arguments.measure:
            first, seconds = _measure(assembly, state)
            lines += [
                ("measured step", f"{seconds:.3f} s, {quantity(flops / seconds)}FLOP/s; compilation {first:.0f} s"),
                ("estimated time", duration(seconds * run.steps + first)),
            ]
        return Plan(lines, parameters, memory)


def _measure(assembly, state):
    """Returns the seconds of the first step and of each following one; nothing of it is kept."""
    step = assembly.train_step(state)
    iterator = assembly.training_iterator(0)
    times = []
    for _ in range(1 + _MEASURED_STEPS):
        began = time.perf_counter()
        step.loop(iterator, tf.constant(1))[0].numpy()
        times.append(time.perf_counter() - began)
    return times[0], float(np.median(times[1:]))


def show_plan(plan, console):
    """Prints a plan.

    Args:
        plan: `Plan`.
        console: `rich.console.Console`.
    """
    table = Table(show_header=False, title="plan", title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, text in plan.lines:
        table.add_row(name, text)
    console.print(table)
    for title, rows, show in (
        ("parameters", plan.parameters, "{:,}".format),
        ("memory of one replica, estimated", plan.memory, byte_count),
    ):
        table = Table(show_header=False, title=title, title_justify="left", show_footer=True)
        table.add_column(footer="total")
        table.add_column(justify="right", footer=show(sum(rows.values())))
        for name, number in rows.items():
            table.add_row(name, show(number))
        console.print(table)
