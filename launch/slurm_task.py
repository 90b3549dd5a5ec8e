"""One task of a Slurm job: finds its place among the others, runs the trainer there, and notes how it ended.

    srun ... python -m launch.slurm_task --folder FOLDER --device gpu -- TRAINER'S ARGUMENTS

TF_CONFIG is made from Slurm's variables. TensorFlow's own `SlurmClusterResolver` makes a cluster of them, too, but it sorts
hosts as text, while Slurm numbers tasks in the order of its list (n9 before n10); all jobs get the same ports, also those
that share a node; and it fails where a node runs several tasks and Slurm shows each its own GPU, or none.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
import socket
import sys

from launch.attempts import Attempts
from launch.command_line import say
from launch.exit_codes import PREEMPTED, WRONG_INPUT
from launch.processes import Command, cluster_variables
from launch.supervision import supervise

# Below the ports that Linux gives to outgoing connections (from 32768), above what Slurm and MPI usually listen on.
_FIRST_PORT, _JOBS, _PORTS_OF_A_JOB = 15_000, 1_000, 16
_RANGES = r"\[(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]"
_PIECE = re.compile(rf"{_RANGES}|([^\[\],]+)")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a task is.

    Attributes:
        hosts: for each task of the step the name of its node.
        rank: number of this task.
        local_rank: number of this task on its node.
        local_tasks: number of tasks on this node.
    """

    hosts: tuple
    rank: int
    local_rank: int
    local_tasks: int


def expand_hosts(text):
    """Returns the list of names in a node list of Slurm's, such as `login,rack[1-2]n[01-03,07]`, in its order.

    Raises:
        ValueError: if it is not one.
    """
    hosts = []
    for part in re.split(r",(?![^\[]*\])", text):
        if not re.fullmatch(rf"(?:[^\[\],]|{_RANGES})+", part):
            raise ValueError(f"{text!r} is not a list of nodes as Slurm writes it")
        pieces = [_expand_numbers(numbers) if numbers else [name] for numbers, name in _PIECE.findall(part)]
        hosts += map("".join, itertools.product(*pieces))
    return hosts


def _expand_numbers(text):
    """Returns the numbers of `01-03,07` as texts."""
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += [f"{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]
    return numbers


def expand_counts(text):
    """Returns the list of numbers in a text such as `8(x2),4`."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"{text!r} is not a list of tasks per node as Slurm writes it")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def place_of(environment):
    """Returns the `Place` of this task, from Slurm's variables.

    Raises:
        ValueError: if they are missing, or do not fit each other.
    """
    try:
        nodes = expand_hosts(environment["SLURM_STEP_NODELIST"])
        counts = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
        rank, node, local_rank = (int(environment[f"SLURM_{name}"]) for name in ("PROCID", "NODEID", "LOCALID"))
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is not set: this runs as a task of srun") from None
    if len(nodes) != len(counts):
        raise ValueError(f"Slurm names {len(nodes)} nodes, but the tasks of {len(counts)}")
    hosts = tuple(name for name, count in zip(nodes, counts, strict=True) for _ in range(count))
    if rank != sum(counts[:node]) + local_rank:
        raise ValueError(
            f"task {rank} is on node {node}: tasks must be numbered node by node (srun --distribution=block)"
        )
    return Place(hosts, rank, local_rank, counts[node])


def port_of(rank, job, restart):
    """Returns the port on which a task listens.

    Jobs with neighbouring numbers, which may share nodes, have ports of their own. A job that is started again has others
    than before, so that one that was taken does not matter again.

    Args:
        rank: of the task.
        job: number of the job.
        restart: how often it was started again.
    """
    block = (job + 89 * restart) % _JOBS
    return _FIRST_PORT + (block * _PORTS_OF_A_JOB + rank) % (_JOBS * _PORTS_OF_A_JOB)


def task_environment(place, environment, device):
    """Returns the variables that the trainer needs.

    Args:
        place: `Place`.
        environment: Slurm's variables.
        device: `gpu` for one of this node's GPUs, `cpu` for none.

    Raises:
        ValueError: with a message for a person.
    """
    variables = {"CUDA_VISIBLE_DEVICES": _gpu(place, environment) if device == "gpu" else ""}
    if len(place.hosts) > 1:
        job, restart = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_RESTART_COUNT", 0))
        workers = [f"{host}:{port_of(rank, job, restart)}" for rank, host in enumerate(place.hosts)]
        variables |= cluster_variables(workers, place.rank)
    return variables


def _gpu(place, environment):
    """Returns this task's GPU: the only one that Slurm lets it see, or its own of as many as there are tasks."""
    seen = environment.get("CUDA_VISIBLE_DEVICES")
    if seen is None:  # Slurm sets it wherever it manages GPUs
        raise ValueError("Slurm gave this task no GPU: the partition may have none (sinfo --format '%P %G')")
    gpus = [name for name in seen.split(",") if name]
    if len(gpus) == 1:
        return gpus[0]
    if len(gpus) != place.local_tasks:
        raise ValueError(f"{len(gpus)} GPUs ({seen}) for {place.local_tasks} tasks on this node: one each is needed")
    return gpus[place.local_rank]


def is_taken(port):
    """Returns whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def ended_folder(folder):
    """Returns the folder in which tasks note how they ended, within the folder of the job."""
    return os.path.join(folder, "slurm", "ended")


def _run(options, environment):
    """Runs the trainer; returns its exit code."""
    try:
        place = place_of(environment)
        variables = task_environment(place, environment, options.device)
    except ValueError as error:
        say(str(error))
        return WRONG_INPUT
    if "TF_CONFIG" in variables:
        port = int(json.loads(variables["TF_CONFIG"])["cluster"]["worker"][place.rank].rpartition(":")[2])
        if is_taken(port):
            say(f"port {port} of this node is taken; started again, the job has others")
            return PREEMPTED
    on = f"GPU {variables['CUDA_VISIBLE_DEVICES']}" if options.device == "gpu" else "CPU"
    say(f"task {place.rank} of {len(place.hosts)}, {place.hosts[place.rank]}, {on}")
    command = Command((sys.executable, "-m", options.module, *options.arguments), variables)
    attempts = Attempts(options.folder) if place.rank == 0 else None
    return supervise(lambda _: [command], max_restarts=0, grace_seconds=options.grace_seconds, attempts=attempts)


def main(arguments=None):
    """Runs the command line; returns the exit code, which is the trainer's."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm_task", allow_abbrev=False)
    add = parser.add_argument
    add("--folder", required=True, help="of the job")
    add("--device", choices=("cpu", "gpu"), default="cpu")
    add("--grace_seconds", type=float, default=120.0)
    add("--module", default="trainer")
    add("arguments", nargs="*", help="the trainer's")
    options = parser.parse_args(arguments)
    code = _run(options, os.environ)
    if code:
        folder = ended_folder(options.folder)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, os.environ.get("SLURM_PROCID", "0")), "w", encoding="ascii") as file:
            file.write(str(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
