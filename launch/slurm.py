"""Runs the trainer as a job of a Slurm cluster: `launch/slurm.sh --gin pretrain.gin --nodes 2 --gpus_per_node 8 ...`

Writes a batch script into the run directory, which must lie where all nodes see it, and submits it: one task per GPU, or
one per node on CPU. Preempted, lost, and before its time limit, the job saves and goes back into the queue. Options that
are not listed here go to the trainer as they are.

    launch/slurm.sh status --run_dir runs/a
    launch/slurm.sh logs [-f] [WORKER] --run_dir runs/a
    launch/slurm.sh stop --run_dir runs/a              # saves first; stop --now does not
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

from launch.attempts import Attempts
from launch.background import status_lines
from launch.command_line import (
    MODES_OF_ONE_PROCESS,
    add_job_options,
    add_run_options,
    check_name,
    command_text,
    make_parser,
    parse_job,
    parse_run,
    positive,
    say,
    split_verb,
)
from launch.exit_codes import WRONG_INPUT
from launch.run_files import is_remote, job_folder, read_status

_SCRIPT = "launch/slurm.sh"
_VERBS = {
    "run": "submits a job",
    "status": "Tells where a job is in Slurm's queue, and how far its run has come.",
    "logs": "Shows what the job says, and worker 0; or another worker alone.",
    "stop": "Lets the trainer save and stop, or takes a job that waits out of the queue.",
}
_REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The first of the tasks to end leaves the others so long, for the last checkpoint; one that is lost is noticed sooner.
_STRAGGLER_SECONDS = 600
# What Slurm's options may hold; constraints join features by & and |.
_VALUE = re.compile(r"[A-Za-z0-9_.,:;@%+&|()\[\]*!<>=/-]+")
_GPUS = re.compile(r"(?:([A-Za-z0-9_.-]+):)?(\d+)")
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}|UNLIMITED|INFINITE")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PASSED = ("partition", "account", "qos", "constraint", "mem")


class SlurmError(Exception):
    """A command of Slurm's failed; the message is Slurm's."""


def _parser():
    parser = make_parser(_SCRIPT, __doc__)
    add_job_options(parser)
    add = parser.add_argument
    add("--nodes", type=positive, default=1, metavar="N", help="default: 1")
    add("--gpus_per_node", default="0", metavar="[TYPE:]N", help="such as 8 or a100:8; default: 0, which is CPU")
    add("--cpus_per_task", type=positive, metavar="N", help="cores of a task; without GPUs, of a node")
    add("--mem", metavar="SIZE", help="memory of a node, such as 64G")
    add("--time", metavar="LIMIT", help="such as 04:00:00 or 2-00; the job goes back into the queue before")
    for name in ("partition", "account", "qos", "constraint"):
        add(f"--{name}", metavar="NAME", help="as sbatch has it")
    add("--job_name", metavar="NAME", help="default: the run directory's name")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="any other, as in --sbatch=--exclusive")
    seconds = "to save before the time limit, or when asked to stop; default: 120"
    add("--grace_seconds", type=positive, default=120, metavar="S", help=seconds)
    return parser


def _checked(options, job):
    """Returns (GPUs per node, tasks per node) of options that fit together.

    Raises:
        ValueError: with a message for a person.
    """
    for name in _PASSED:
        value = getattr(options, name)
        if value is not None and not _VALUE.fullmatch(value):
            raise ValueError(f"--{name} {value!r} holds characters that have no meaning there")
    if options.time is not None and not _TIME.fullmatch(options.time):
        raise ValueError(f"--time {options.time!r}: use MINUTES, HH:MM:SS or DAYS-HH, for example 04:00:00")
    for option in options.sbatch:
        if not re.match(r"--?[A-Za-z]", option):
            raise ValueError(f"--sbatch {option!r} is not an option, for example --sbatch=--exclusive")
        if re.match(r"--array|-a|--wrap", option):
            raise ValueError(f"--sbatch {option!r}: a run is one job; launch/sweep.sh runs many")
    if not (gpus := _GPUS.fullmatch(options.gpus_per_node)):
        raise ValueError(f"--gpus_per_node {options.gpus_per_node!r}: use a number, or TYPE:NUMBER as in a100:8")
    if re.search(r"[%\\]", job.run_dir):
        raise ValueError(f"--run_dir {job.run_dir!r}: % and \\ mean something else to Slurm")
    count = int(gpus[2])
    tasks = options.nodes * max(1, count)
    if count == 0 and options.cpus_per_task is None:
        raise ValueError(
            "without GPUs --cpus_per_task N is needed: how many cores a node gives the job; Slurm's own is 1"
        )
    if tasks > 1 and options.mode in MODES_OF_ONE_PROCESS:
        raise ValueError(f"--mode {options.mode} runs in one process: --nodes 1, and one GPU or --cpus_per_task N")
    if tasks > 1 and any(re.match(r"\s*strategy\s*=", text) for text in job.gin_param):
        raise ValueError(f"{tasks} tasks set the trainer's strategy themselves. Remove the --gin_param for strategy.")
    return count, max(1, count)


def _job_name(options, run_dir):
    if options.job_name is not None:
        return check_name(options.job_name, "--job_name")
    readable = re.sub(r"[^a-z0-9]+", "-", os.path.basename(run_dir.rstrip("/")).lower()).strip("-")
    return readable[:60] or "bert-trainer"


def script_text(options, job, folder, *, module="trainer", straggler_seconds=_STRAGGLER_SECONDS):
    """Returns the batch script.

    Args:
        options: what the command line says.
        job: `launch.command_line.TrainerJob` with an absolute run directory.
        folder: absolute path of the folder for logs and the script.
        module: the Python module to run.
        straggler_seconds: how long tasks may go on when one has ended.

    Raises:
        ValueError: with a message for a person, if options do not fit together.
    """
    gpus, tasks_per_node = _checked(options, job)
    logs = os.path.join(folder, "logs")
    directives = {
        "job-name": _job_name(options, job.run_dir),
        "nodes": options.nodes,
        "ntasks": options.nodes * tasks_per_node,
        "ntasks-per-node": tasks_per_node,
        "gpus-per-node": options.gpus_per_node if gpus else None,
        "cpus-per-task": options.cpus_per_task,
        **{name: getattr(options, name) for name in _PASSED},
        "time": options.time,
        "chdir": os.getcwd(),
        "output": os.path.join(logs, "slurm-%j.log"),
        "open-mode": "append",
        "signal": f"B:USR1@{options.grace_seconds}",
    }
    lines = [f"--{name}={value}" for name, value in directives.items() if value is not None]
    lines += ["--requeue", *options.sbatch]
    for line in lines:
        if _CONTROL.search(line):  # a new line would begin a command
            raise ValueError(f"{line!r} holds a control character")
    step = [
        ["srun", "--distribution=block", "--kill-on-bad-exit=0", f"--wait={straggler_seconds}"],
        [*(["--gpu-bind=none"] if gpus else []), *_cpus(options), "--open-mode=append"],
        [f"--output={os.path.join(logs, 'worker-%t.log')}"],
        [sys.executable, "-m", "launch.slurm_task", "--folder", folder, "--device", "gpu" if gpus else "cpu"],
        ["--grace_seconds", str(options.grace_seconds), *(["--module", module] if module != "trainer" else []), "--"],
        *_trainer_arguments(job, several=options.nodes * tasks_per_node > 1),
    ]
    batch = [sys.executable, "-m", "launch.slurm_batch", "--folder", folder]
    batch += ["--max_restarts", str(options.max_restarts), "--"]
    path = shlex.quote(_REPOSITORY)
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# Written by launch/slurm.sh. launch.slurm_batch runs the step, passes on requests to stop, and puts the",
            "# job back into the queue; launch.slurm_task tells each task its place and its GPU.",
            *(f"#SBATCH {shlex.quote(line)}" for line in lines),
            "set -euo pipefail",
            f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"exec {shlex.join(batch)} \\",
            *(f"  {shlex.join(part)} \\" for part in step[:-1]),
            f"  {shlex.join(step[-1])}",
            "",
        ]
    )


def _cpus(options):
    # Since 22.05 srun does not take it over from sbatch.
    return [] if options.cpus_per_task is None else [f"--cpus-per-task={options.cpus_per_task}"]


def _trainer_arguments(job, several):
    """Returns the trainer's arguments as a list of lists, an option with its value each."""
    parts = []
    # With TF_CONFIG this is multi_worker; without, whoever looks at the run later needs no cluster.
    for word in job.arguments(['strategy="auto"'] if several else []):
        if word.startswith("--") or not parts or len(parts[-1]) > 1 or not parts[-1][0].startswith("--"):
            parts.append([word])
        else:
            parts[-1].append(word)
    return parts


class SlurmJob:
    """The job of a run directory, as far as Slurm knows it.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir):
        self.run_dir = run_dir
        self.folder = os.path.abspath(job_folder(run_dir, os.environ))
        self.script = os.path.join(self.folder, "slurm", "job.sbatch")
        self.logs = os.path.join(self.folder, "logs")
        self._record = os.path.join(self.folder, "slurm", "job.json")

    @property
    def number(self):
        """The job's number, as a text; None if none was submitted."""
        try:
            with open(self._record, encoding="utf-8") as file:
                number = json.load(file)["job"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return number if re.fullmatch(r"\d+", str(number)) else None

    def queue(self):
        """Returns [state, time used, time limit, nodes, reason], in Slurm's words; None if it is not in the queue."""
        if self.number is None:
            return None
        try:
            line = _slurm("squeue", "--noheader", f"--jobs={self.number}", "--format=%T|%M|%l|%N|%r")
        except SlurmError as error:
            if "Invalid job id" in str(error):  # ended some time ago
                return None
            raise
        return line.split("|") if line else None

    def submit(self, script):
        """Writes the script and submits it; returns the job's number."""
        os.makedirs(os.path.dirname(self.script), exist_ok=True)
        os.makedirs(self.logs, exist_ok=True)
        _write(self.script, script)
        answer = _slurm("sbatch", "--parsable", self.script)
        number = answer.partition(";")[0]
        if not number.isdigit():
            raise SlurmError(f"sbatch answered {answer!r}, which is not the number of a job")
        _write(self._record, json.dumps({"job": number, "submitted_at": time.time()}) + "\n")
        return number


def _write(path, text):
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(file.name, path)


def _slurm(*command):
    """Runs a command of Slurm's; returns what it prints, without white space around it.

    Raises:
        SlurmError: if it fails.
    """
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]} is not on this machine: run this where you submit jobs, or `module load slurm`")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SlurmError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip()


def main(arguments=None, *, module="trainer", straggler_seconds=_STRAGGLER_SECONDS):
    """Runs the command line; returns the exit code."""
    verb, arguments = split_verb(arguments, _VERBS)
    try:
        if verb == "run":
            return _run(arguments, module, straggler_seconds)
        return _look_after(verb, arguments)
    except SlurmError as error:
        say(str(error))
        return WRONG_INPUT


def _run(arguments, module, straggler_seconds):
    parser = _parser()
    options, job = parse_job(parser, arguments)
    if not is_remote(job.run_dir):
        job = dataclasses.replace(job, run_dir=os.path.abspath(job.run_dir))
    slurm_job = SlurmJob(job.run_dir)
    try:
        text = script_text(options, job, slurm_job.folder, module=module, straggler_seconds=straggler_seconds)
    except ValueError as error:
        parser.error(str(error))
    if options.dry_run:
        print(_dry_run_text(options, slurm_job, text), end="")
        return 0
    if importlib.util.find_spec("tensorflow") is None:
        install = f"{shlex.quote(sys.executable)} -m pip install bert-trainer"
        say(f"TensorFlow is not installed for {sys.executable}, which the nodes will run. Install: {install}")
        return WRONG_INPUT
    if state := slurm_job.queue():
        stop = command_text([_SCRIPT, "stop", "--run_dir", job.run_dir])
        say(f"job {slurm_job.number} has this run directory and is {state[0]}. First: {stop}")
        return WRONG_INPUT
    number = slurm_job.submit(text)
    say(f"job {number} is submitted; {slurm_job.script}")
    for verb in (["status"], ["logs", "-f"], ["stop"]):
        print(f"  {command_text([_SCRIPT, *verb, '--run_dir', job.run_dir])}")
    return 0


def _dry_run_text(options, slurm_job, script):
    lines = [
        f"would ask   nodes: {options.nodes}, GPUs on each: {options.gpus_per_node}",
        "cost        your cluster's: Slurm tells no price",
        f"would make  {slurm_job.script}, logs in {slurm_job.logs}",
        "would run",
        f"  {command_text(['sbatch', '--parsable', slurm_job.script])}",
        "the script",
        "",
    ]
    return "\n".join(lines) + "".join(f"  {line}".rstrip() + "\n" for line in script.splitlines())


def _look_after(verb, arguments):
    """Runs `status`, `logs` or `stop`; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"{_SCRIPT} {verb}", description=_VERBS[verb], allow_abbrev=False)
    add_run_options(parser)
    add = parser.add_argument
    if verb == "logs":
        add("worker", nargs="?", type=int, help="number of a worker")
        add("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    if verb == "stop":
        add("--now", action="store_true", help="end the job at once: Slurm leaves it KillWait to save, often 30 s")
    options, run_dir = parse_run(parser, arguments)
    slurm_job = SlurmJob(run_dir if is_remote(run_dir) else os.path.abspath(run_dir))
    if slurm_job.number is None:
        say(f"no job was submitted for {run_dir}")
        return WRONG_INPUT
    if verb == "status":
        return _show_status(slurm_job)
    return _stop(slurm_job, options.now) if verb == "stop" else _show_logs(slurm_job, options.worker, options.follow)


def _show_status(slurm_job):
    print(f"run        {slurm_job.run_dir}")
    queued = slurm_job.queue()
    if queued is None:
        print(f"job        {slurm_job.number} has ended: it is not in Slurm's queue")
    else:
        state, used, limit, nodes, reason = queued
        where = f"on {nodes}, {used} of {limit}" if nodes else f"({reason})"
        print(f"job        {slurm_job.number} {state} {where}")
    for line in status_lines(read_status(slurm_job.run_dir), Attempts(slurm_job.folder).read()):
        print(line)
    return 0


def _show_logs(slurm_job, worker, follow):
    names = [f"slurm-{slurm_job.number}.log", "worker-0.log"] if worker is None else [f"worker-{worker}.log"]
    paths = [os.path.join(slurm_job.logs, name) for name in names]
    if not follow:
        paths = [path for path in paths if os.path.exists(path)]
    if not paths:
        say(f"there is no log {' or '.join(names)} in {slurm_job.logs} yet")
        return WRONG_INPUT
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(["tail", "-n", "1000", *(["-F"] if follow else []), "--", *paths])
    return 0


def _stop(slurm_job, now):
    number, queued = slurm_job.number, slurm_job.queue()
    if queued is None:
        say(f"job {number} has ended: it is not in Slurm's queue")
        return WRONG_INPUT
    if queued[0] == "RUNNING" and not now:
        # The batch script alone gets the signal: it has the tasks save, as long as that takes, and ends.
        _slurm("scancel", "--batch", "--signal=TERM", number)
        say(f"job {number} saves and stops")
    else:
        _slurm("scancel", number)
        say(f"job {number} is cancelled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
