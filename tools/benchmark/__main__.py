"""Measures the trainer on this machine, side by side with its peers where they are installed.

    python -m tools.benchmark                      # everything
    python -m tools.benchmark step reader          # some subjects
    python -m tools.benchmark step --peer_python hugging_face=/opt/venv-torch/bin/python --json numbers.json

Close other programs first: ratios within a round bear some noise, rates do not. `docs/benchmarks.md` says what each
number means and how to install the peers.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import sys

from rich.console import Console

from tools.benchmark import (
    accumulation,
    checkpoint,
    fine_tuning,
    optimizers,
    reader,
    remote_input,
    startup,
    step,
    weights,
)
from tools.benchmark.settings import Settings
from tools.benchmark.tables import show
from trainer.errors import InputError, TrainerError

SUBJECTS = {
    "step": step,
    "accumulation": accumulation,
    "optimizers": optimizers,
    "fine_tuning": fine_tuning,
    "reader": reader,
    "input": remote_input,
    "checkpoint": checkpoint,
    "startup": startup,
    "weights": weights,
}

PEERS = step.PEERS | optimizers.PEERS | fine_tuning.PEERS


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of the description and shows defaults where there are any."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def parser():
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=__doc__, formatter_class=_HelpFormatter
    )
    result.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"what to measure: {', '.join(SUBJECTS)}; all if none is given"
    )
    result.add_argument("--json", metavar="FILE", help="write everything that was measured there, too")
    result.add_argument(
        "--peer_python",
        metavar="PEER=PYTHON",
        action="append",
        default=[],
        help=f"interpreter of a peer that lives in another virtual environment; peers: {', '.join(PEERS)}",
    )
    group = result.add_argument_group("size")
    for field in dataclasses.fields(Settings):
        if field.name != "peer_python":
            meaning = field.metadata["help"]
            group.add_argument(f"--{field.name}", metavar="N", type=field.type, default=field.default, help=meaning)
    return result


def settings_of(arguments):
    """Returns `Settings`.

    Raises:
        InputError: if a subject, peer or number cannot be.
    """
    for subject in arguments.subjects:
        if subject not in SUBJECTS:
            raise InputError(f"there is no subject {subject!r}: choose from {', '.join(SUBJECTS)}")
    interpreters = {}
    for text in arguments.peer_python:
        name, equals, python = text.partition("=")
        if not equals or name not in PEERS:
            raise InputError(
                f"--peer_python {text!r}: write PEER=PYTHON with one of the peers {', '.join(PEERS)}, such as "
                "hugging_face=/opt/venv-torch/bin/python"
            )
        interpreters[name] = os.path.expanduser(python)
    values = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Settings)
        if field.name != "peer_python"
    }
    for name, value in values.items():
        if value < 1 and name not in ("dropout", "round_seconds", "base_updates"):
            raise InputError(f"--{name} must be at least 1, got {value}")
    if not 0 <= values["dropout"] < 1:
        raise InputError(f"--dropout must lie in [0, 1), got {values['dropout']}")
    if values["round_seconds"] < 0:
        raise InputError(f"--round_seconds must not be negative, got {values['round_seconds']}")
    if values["hidden_size"] % values["num_heads"]:
        raise InputError(
            f"--hidden_size {values['hidden_size']} is not a multiple of --num_heads {values['num_heads']}"
        )
    if values["predictions"] > values["length"]:
        raise InputError(f"--predictions {values['predictions']} is more than the --length {values['length']} of a row")
    return Settings(**values, peer_python=interpreters)


def machine():
    """Returns what should be known of the machine: processor, cores, load before the start."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            processor = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor,
        "cores": cores,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "measured_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main(arguments):
    """Measures and reports; returns the exit code.

    Args:
        arguments: list of strings.
    """
    parsed = parser().parse_args(arguments)
    settings = settings_of(parsed)
    console = Console()
    where = machine()
    console.print(f"{where['processor']}, {where['cores']} cores, load {where['load']:.2f}", highlight=False)
    if where["load"] > 0.5:
        console.print("other programs are running: trust the ratios more than the rates", style="yellow")
    content = {"machine": where, "settings": dataclasses.asdict(settings), "subjects": {}}
    findings = []
    for subject in parsed.subjects or SUBJECTS:
        console.print(f"[bold]{subject}[/bold]")
        findings.append(SUBJECTS[subject].measure(settings, lambda line: console.print(f"  {line}", markup=False)))
        content["subjects"][subject] = findings[-1].numbers
        if parsed.json:  # after each subject: the next one may be stopped
            pathlib.Path(parsed.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print()
    for found in findings:
        show(found, console)
    return 0


def run(arguments):
    """As `main`, with errors as messages.

    Not that of `tools.command_line`, which imports TensorFlow: this process must stay small and idle.
    """
    try:
        return main(arguments)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
