"""Clusters of two nodes on this machine: of commands that stand in for Slurm's, and of Slurm where it is installed."""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import psutil
import pytest

HERE = pathlib.Path(__file__).parent
DEADLINE_SECONDS = 300
# Both are this machine. Sorted as text they would change places.
NODES = "127.0.0.[9-10]"
_COMMANDS = ("sbatch", "srun", "scancel", "scontrol", "squeue")
_DAEMONS = ("munged", "slurmctld", "slurmd")


def eventually(condition, what):
    """Waits until a condition holds; returns what it returned."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what() if callable(what) else what}"
        time.sleep(0.05)
    return value


@dataclasses.dataclass
class Cluster:
    """A cluster.

    Attributes:
        name: `stub` or `slurm`.
        environment: what its commands need.
    """

    name: str
    environment: dict

    def call(self, *command):
        """Runs a command of Slurm's; returns what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def state(self, number):
        """Returns a job's state, empty once it is not in the queue."""
        command = ("squeue", "--noheader", f"--jobs={number}", "--format=%T")
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
        assert done.returncode == 0 or "Invalid job id" in done.stderr, done.stderr
        return done.stdout.strip()

    def warn(self, number):
        """Does what Slurm does some time before a job's time limit, where it was asked to by `--signal=B:USR1@...`."""
        self.call("scancel", "--batch", "--signal=USR1", number)

    def preempt(self, number, grace):
        """Takes a job's nodes away, with or without a grace time."""
        self.call(*(("scancel", "--signal=TERM") if grace else ("scontrol", "requeue")), number)

    def let_start_again(self, number):
        """Lets a job that was put back into the queue start at once; Slurm would wait for two minutes."""
        if self.name == "slurm":
            eventually(lambda: self.state(number) == "PENDING", "the queue")
            # Slurm puts the start off a second time when the last process of the job has ended.
            eventually(lambda: self._starts_now(number), "the start")

    def _starts_now(self, number):
        if self.state(number) in ("RUNNING", ""):
            return True
        begin = self.call("squeue", "--noheader", f"--jobs={number}", "--format=%S")
        with contextlib.suppress(ValueError):
            if datetime.datetime.fromisoformat(begin) > datetime.datetime.now() + datetime.timedelta(seconds=30):
                # In the second of the first end the job's credential counts as revoked.
                self.call("scontrol", "update", f"JobId={number}", "StartTime=now+3seconds")
        return False


@contextlib.contextmanager
def stub_cluster(folder):
    """Yields a `Cluster` of stand-ins; ends all its processes."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name in _COMMANDS:
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{HERE / "slurm_stub.py"}" {name} "$@"\n')
        (commands / name).chmod(0o755)
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "STUB_SLURM": str(folder), "STUB_SLURM_NODES": NODES}
    try:
        yield Cluster("stub", _environment() | environment)
    finally:
        _kill_all_with("STUB_SLURM", folder)


@contextlib.contextmanager
def slurm_cluster(folder):
    """Yields a `Cluster` of Slurm's own daemons, which are ended in the end; skips where there is no Slurm."""
    for name in (*_COMMANDS, *_DAEMONS):
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip(f"{name} is not installed")
    if os.getuid() != 0:
        pytest.skip("slurmd runs as root")
    folder.mkdir(parents=True)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    controller, first, second = _free_ports(3)
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": "localhost",
        "SlurmctldPort": controller,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd-%n.log",
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerParameters": "sched_min_interval=0,sched_interval=1,bf_interval=1",
        "KillWait": 20,
        "MpiDefault": "none",
        "ReturnToService": 2,
        "NodeName": f"{NODES} NodeHostname=localhost NodeAddr=127.0.0.1 Port={first},{second} CPUs=8",
        "PartitionName": "all Nodes=ALL Default=YES",
    }
    (folder / "slurm.conf").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin", "SLURM_CONF": str(folder / "slurm.conf")}
    cluster = Cluster("slurm", _environment() | environment)
    munge = [f"--{name}={folder}/{path}" for name, path in (("socket", "munge.socket"), ("key-file", "key"))]
    munge += [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
    daemons = []
    with open(folder / "daemons.log", "ab") as log:

        def start(*command):
            daemons.append(
                subprocess.Popen(command, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

        try:
            start("munged", "--foreground", "--force", *munge)
            eventually((folder / "munge.socket").exists, "munged")
            (folder / "state").mkdir()
            start("slurmctld", "-D", "-c")
            for number in (9, 10):
                (folder / f"spool-127.0.0.{number}").mkdir()
                start("slurmd", "-D", "-N", f"127.0.0.{number}")
            eventually(lambda: _idle_nodes(cluster) == 2, lambda: (folder / "slurmctld.log").read_text()[-3000:])
            yield cluster
        finally:
            for daemon in daemons:
                daemon.kill()
            for daemon in daemons:
                daemon.wait()
            # slurmstepd and what it started left their parents.
            _kill_all_with("SLURM_CONF", folder / "slurm.conf")


def _idle_nodes(cluster):
    command = ("sinfo", "--noheader", "--format=%D", "--states=idle")
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True)
    return sum(map(int, done.stdout.split()))


def _kill_all_with(variable, value):
    """Kills all processes that have an environment variable."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == str(value):
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=10)


def _environment():
    ours = ("TF_CONFIG", "TF_XLA_FLAGS", "CUDA_VISIBLE_DEVICES")
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("SLURM_")}
    return kept | {"PYTHON": sys.executable, "PYTHONPATH": str(HERE)}


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
