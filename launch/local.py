"""Runs the trainer on this machine: `launch/local.sh [run] --gin quickstart.gin`; also `status`, `logs` and `stop`.

One process on CPU or on one GPU; on several GPUs one process per GPU (MultiWorkerMirroredStrategy), or one for all
of them with `--strategy mirrored`; N processes on CPU with `--processes N`. Restarts the job after preemption and lost
or hung workers. Options that are not listed here go to the trainer as they are.

    launch/local.sh --gin quickstart.gin --run_dir runs/a --detach   # in the background
    launch/local.sh status --run_dir runs/a
    launch/local.sh logs [-f] [WORKER] --run_dir runs/a
    launch/local.sh stop --run_dir runs/a                            # saves first
"""

import argparse
import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys

from launch.attempts import Attempts
from launch.background import detach, recorded, show_logs, show_status, stop
from launch.command_line import (
    MODES_OF_ONE_PROCESS,
    add_job_options,
    add_run_options,
    command_text,
    make_parser,
    parse_job,
    parse_run,
    say,
    split_verb,
)
from launch.exit_codes import WRONG_INPUT
from launch.processes import Command, cluster_variables
from launch.run_files import job_folder
from launch.supervision import supervise

_SCRIPT = "launch/local.sh"
_VERBS = {
    "run": "runs the trainer",
    "status": "Tells what a run does: step, time left, attempts, and the share of the time that was not lost.",
    "logs": "Shows the log of a job in the background, or of a worker of several.",
    "stop": "Lets a job on this machine save and stop, and waits for it.",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run where.

    Attributes:
        trainer_arguments: everything behind `python -m trainer`.
        devices: for each process the GPUs it sees, as CUDA_VISIBLE_DEVICES names them; empty for none.
        module: the Python module to run.
    """

    trainer_arguments: tuple
    devices: tuple
    module: str = "trainer"


def visible_gpus(environment):
    """Returns the GPUs of this machine as CUDA_VISIBLE_DEVICES names them, without loading TensorFlow or CUDA.

    Args:
        environment: the environment variables; a CUDA_VISIBLE_DEVICES there limits the GPUs as CUDA does.
    """
    limit = environment.get("CUDA_VISIBLE_DEVICES")
    if limit is not None:
        gpus = []
        for name in limit.split(","):
            if name.strip() in ("", "-1"):  # CUDA ignores what stands behind a name that is not valid
                break
            gpus.append(name.strip())
        return gpus
    if shutil.which("nvidia-smi", path=environment.get("PATH")) is None:
        return []
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"launch: nvidia-smi does not answer ({error}); going on without GPUs", file=sys.stderr)
        return []
    if listing.returncode != 0:
        reason = (listing.stdout + listing.stderr).strip().splitlines()[:1]
        print(f"launch: nvidia-smi finds no GPU: {' '.join(reason)}", file=sys.stderr)
        return []
    return parse_gpu_listing(listing.stdout)


def parse_gpu_listing(listing):
    """Returns the names of the GPUs in the output of `nvidia-smi -L`; a GPU in MIG mode counts as its instances."""
    gpus = []
    for line in listing.splitlines():
        gpu = re.match(r"GPU (\d+):", line)
        instance = re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line)
        if gpu:
            gpus.append([gpu[1]])
        elif instance and gpus:
            gpus[-1].append(instance[1])
    return [name for names in gpus for name in (names[1:] or names)]


def reserve_ports(count):
    """Returns `count` sockets, each holding a free loopback port until it is closed.

    The workers can listen on these ports all the same: the sockets do not listen, and both sides allow sharing
    (TF_GRPC_REUSE_PORT in the workers). So no other program can take a port between choosing and using it.
    """
    sockets = []
    for _ in range(count):
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        sockets.append(holder)
    return sockets


def make_commands(job, ports):
    """Returns a `Command` for each process of a job; `ports` has one loopback port each if there are several."""
    workers = [f"127.0.0.1:{port}" for port in ports]
    commands = []
    for index, devices in enumerate(job.devices):
        arguments = [sys.executable, "-m", job.module, *job.trainer_arguments]
        environment = {}
        if len(job.devices) > 1:
            environment = cluster_variables(workers, index) | {"TF_GRPC_REUSE_PORT": "1"}
            # nvidia-smi counts GPUs in the order of the bus, CUDA by default does not.
            environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(devices)}
        commands.append(Command(tuple(arguments), environment))
    return commands


def share_out(gpus, processes, strategy, has_own_strategy):
    """Decides how many processes run and which GPUs each sees.

    Args:
        gpus: names of the GPUs.
        processes: the number asked for, or None.
        strategy: "mirrored", "multi_worker" or None.
        has_own_strategy: whether the user's parameters name a strategy for the trainer; then one process runs.

    Returns:
        A tuple of tuples of names: the GPUs of each process.

    Raises:
        ValueError: with a message for a person.
    """
    if processes is None:
        one = strategy == "mirrored" or has_own_strategy or len(gpus) < 2
        processes = 1 if one else len(gpus)
    if processes > 1 and strategy == "mirrored":
        raise ValueError(
            f"--strategy mirrored runs in one process, but --processes is {processes}. Remove one of them."
        )
    if (processes > 1 or strategy) and has_own_strategy:
        asking = f"--strategy {strategy}" if strategy else f"--processes {processes}"
        raise ValueError(f"{asking} sets the trainer's strategy itself. Remove the --gin_param for strategy.")
    if gpus and len(gpus) % processes:
        fits = ", ".join(str(number) for number in range(1, len(gpus) + 1) if len(gpus) % number == 0)
        raise ValueError(
            f"--processes {processes} does not divide the {len(gpus)} GPUs of this machine: use {fits}, "
            "or set CUDA_VISIBLE_DEVICES= to run on CPU."
        )
    if processes == 1:
        return ((),)  # one process sees what there is, without being told
    share = len(gpus) // processes
    return tuple(tuple(gpus[index * share : (index + 1) * share]) for index in range(processes))


def dry_run_text(commands):
    """Returns the commands as lines for a shell, with the variables that each gets."""
    return "\n".join(command_text(command.arguments, command.environment) for command in commands)


def _parser():
    parser = make_parser(_SCRIPT, __doc__)
    add_job_options(parser)
    add = parser.add_argument
    add("--processes", type=int, metavar="N", help="number of processes; default: one per GPU, else one")
    add("--strategy", choices=("mirrored", "multi_worker"), help="for several GPUs: one process, or one each (default)")
    add("--detach", action="store_true", help="run in the background; `status`, `logs` and `stop` find it again")
    add("--once", action="store_true", help="start it once and keep no record: for launchers that do both themselves")
    add("--grace_seconds", type=float, default=120, metavar="S", help="to save and stop when asked to; default: 120")
    return parser


def main(arguments=None, *, module="trainer"):
    """Runs the command line; returns the exit code, which is the trainer's."""
    verb, arguments = split_verb(arguments, _VERBS)
    if verb != "run":
        return _look_after(verb, arguments)
    parser = _parser()
    options, trainer_job = parse_job(parser, arguments)
    if options.processes is not None and options.processes < 1:
        parser.error(f"--processes {options.processes}: at least 1")
    gpus = visible_gpus(os.environ) if options.mode not in MODES_OF_ONE_PROCESS else []
    try:
        processes = 1 if options.mode in MODES_OF_ONE_PROCESS else options.processes
        devices = share_out(gpus, processes, options.strategy, trainer_job.sets_strategy)
    except ValueError as error:
        parser.error(str(error))
    parameters = []
    if len(devices) > 1:
        # With TF_CONFIG this is multi_worker; without, whoever looks at the run later needs no cluster.
        parameters.append('strategy="auto"')
    elif options.strategy == "mirrored":
        parameters.append('strategy="mirrored"')
    job = Job(trainer_job.arguments(parameters), devices, module)
    if options.dry_run:
        return _dry_run(job)
    if importlib.util.find_spec("tensorflow") is None:
        install = f"{shlex.quote(sys.executable)} -m pip install bert-trainer"
        say(f"TensorFlow is not installed for {sys.executable}. Install: {install}")
        return WRONG_INPUT
    if options.detach and options.once:
        parser.error("--once keeps no record by which --detach could find the job again")
    if options.detach:
        own = [argument for argument in arguments if argument != "--detach"]
        return detach("launch.local", own, trainer_job.run_dir, _SCRIPT)
    if options.once:
        return _start(job, trainer_job.run_dir, options)
    with recorded(trainer_job.run_dir) as ended:
        code = _start(job, trainer_job.run_dir, options)
        ended(code)
    return code


def _look_after(verb, arguments):
    """Runs `status`, `logs` or `stop`; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"{_SCRIPT} {verb}", description=_VERBS[verb], allow_abbrev=False)
    add_run_options(parser)
    add = parser.add_argument
    if verb == "logs":
        add("worker", nargs="?", type=int, help="number of a worker of several")
        add("-f", "--follow", action="store_true", help="go on until the job ends")
    options, run_dir = parse_run(parser, arguments)
    if verb == "status":
        return show_status(run_dir, _SCRIPT)
    return stop(run_dir) if verb == "stop" else show_logs(run_dir, options.worker, options.follow)


def _dry_run(job):
    sockets = reserve_ports(len(job.devices))
    print(dry_run_text(make_commands(job, [holder.getsockname()[1] for holder in sockets])))
    for holder in sockets:
        holder.close()
    return 0


def _start(job, run_dir, options):
    folder = job_folder(run_dir, os.environ)
    log_folder = os.path.join(folder, "logs")
    if len(job.devices) > 1:
        say(f"{len(job.devices)} processes, logs in {log_folder}")
    if options.run_dir is None:
        say(f"run directory {run_dir}")
    held = []

    def commands(_):
        while held:
            held.pop().close()
        held.extend(reserve_ports(len(job.devices) if len(job.devices) > 1 else 0))
        return make_commands(job, [holder.getsockname()[1] for holder in held])

    return supervise(
        commands,
        log_folder=log_folder,
        max_restarts=0 if options.once else options.max_restarts,
        grace_seconds=options.grace_seconds,
        attempts=Attempts(folder) if options.mode == "train" and not options.once else None,
    )


if __name__ == "__main__":
    sys.exit(main())
