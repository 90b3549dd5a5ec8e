"""The agent on the machine: real processes, with a stand-in for the launcher that the wheel brings."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import psutil
import pytest
from waiting import DEADLINE_SECONDS, eventually

from launch.command_line import TrainerJob
from launch.tpu import agent
from launch.tpu.accelerators import plan_machine
from launch.tpu.remote import Bundle, build_wheel

# Stands in for `launch.local`: tells what it was given, then waits for SIGTERM or ends as it is told.
TRAINER = """
import json, os, signal, sys, time
names = ("TPU_NAME", "MARK")
print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd(), **{n: os.environ.get(n) for n in names}}), flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if "end" in sys.argv:
    sys.exit(int(sys.argv[sys.argv.index("end") + 1]))
time.sleep(600)
"""


@pytest.fixture
def machine(tmp_path):
    """A folder on a machine, with the agent in it; kills what is left at the end."""
    wheel = tmp_path / "code.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("launch/__init__.py", "")
        archive.writestr("launch/local.py", TRAINER)
    folder = tmp_path / "bert-trainer-x"

    class Machine:
        def bundle(self, *others, gin=("pretrain.gin",), **more):
            shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
            (tmp_path / "bundle").mkdir()
            job = TrainerJob(tuple(gin), ('data="a b; $(c) \'"',), "gs://b/r", others=tuple(others))
            settings = {"wheel": str(wheel), "python": sys.executable, "allow_cpu": True, "environment": ("MARK=1 2",)}
            bundle = Bundle("x", job, plan_machine("v4-8"), **(settings | more))
            bundle.write(str(tmp_path / "bundle"))
            shutil.copytree(tmp_path / "bundle", folder, dirs_exist_ok=True)
            return bundle.description["key"]

        def run(self, *arguments):
            command = [sys.executable, str(folder / "agent.py"), *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)

        def status(self):
            return json.loads(self.run("status").stdout)

        def log(self, offset=0):
            return base64.b64decode(json.loads(self.run("log", str(offset)).stdout)["log"]).decode()

    it = Machine()
    it.folder = folder
    yield it
    if (folder / "state.json").exists():
        state = json.loads((folder / "state.json").read_text())
        for number in (state.get("group"), state.get("keeper")):
            if number and psutil.pid_exists(number):
                os.killpg(number, signal.SIGKILL)


def test_trainer_outlives_the_connection_and_is_found_again(machine):
    key = machine.bundle()
    assert "agent: setup ended with 0\n" in machine.run("setup").stdout and machine.status()["state"] == "none"
    assert machine.run("start").returncode == 0
    told = json.loads(eventually(lambda: "{" in machine.log() and machine.log(), "the trainer").splitlines()[1])
    assert told["arguments"][:2] == ["run", "--once"] and 'data="a b; $(c) \'"' in told["arguments"]
    assert told["folder"] == str(machine.folder / "files") and told["MARK"] == "1 2" and told["TPU_NAME"] is None
    status = eventually(lambda: "group" in machine.status() and machine.status(), "the group")
    assert status["state"] == "running" and status["job"] == key and status["log_bytes"] == len(machine.log())
    assert machine.run("start").returncode == 0 and machine.status()["keeper"] == status["keeper"]  # not a second one
    assert machine.run("stop").returncode == 0
    assert machine.status()["code"] == 75 and not psutil.pid_exists(status["group"])
    assert machine.log(len(machine.log()) - 5).endswith("---\n")


def test_exit_code_is_kept(machine):
    machine.bundle("end", "2")
    machine.run("setup")
    machine.run("start")
    assert eventually(lambda: machine.status()["state"] == "ended" and machine.status(), "the end")["code"] == 2


def test_killed_trainer_is_lost_and_so_is_one_whose_keeper_was_killed(machine):
    machine.bundle()
    machine.run("setup")
    machine.run("start")
    group = eventually(lambda: machine.status().get("group"), "the group")
    os.kill(group, signal.SIGKILL)
    assert eventually(lambda: machine.status()["state"] == "ended" and machine.status(), "the end")["code"] == 137
    machine.run("start")
    status = eventually(lambda: machine.status().get("group", group) != group and machine.status(), "another group")
    os.kill(status["keeper"], signal.SIGKILL)
    assert eventually(lambda: machine.status()["state"] == "ended" and machine.status(), "the end")["code"] == 137
    eventually(lambda: not psutil.pid_exists(status["group"]), "the end of the group")


def test_damaged_wheel_is_not_used(machine):
    machine.bundle()
    with open(machine.folder / "code.whl", "ab") as file:
        file.write(b"x")
    assert "agent: setup ended with 137\n" in machine.run("setup").stdout
    assert not (machine.folder / "code").exists()


def test_machine_without_a_tpu_is_an_error_unless_the_processor_is_allowed(machine, monkeypatch):
    machine.bundle(allow_cpu=False)
    machine.run("setup")
    machine.run("start")
    status = eventually(lambda: machine.status()["state"] == "ended" and machine.status(), "the end")
    assert status["code"] == 2 and "no TPU on this machine" in machine.log()
    job = {"environment": {}, "allow_cpu": False, "is_pod": False, "node": "x"}
    monkeypatch.setattr(agent.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    assert agent.environment_of(job)["TPU_NAME"] == "local"
    pod = agent.environment_of(job | {"is_pod": True})
    assert pod["TPU_NAME"] == "x" and pod["TPU_LOAD_LIBRARY"] == "0"


def test_own_gin_files_travel_and_change_the_key(machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my run.gin").write_text("a = 1\n")
    first = machine.bundle(gin=("my run.gin", "pretrain.gin"))
    job = json.loads((machine.folder / "job.json").read_text())
    assert job["arguments"][2:6] == ["--gin", "0-my run.gin", "--gin", "pretrain.gin"]
    assert (machine.folder / "files" / "0-my run.gin").read_text() == "a = 1\n"
    assert machine.bundle(gin=("my run.gin", "pretrain.gin")) == first
    (tmp_path / "my run.gin").write_text("a = 2\n")
    assert machine.bundle(gin=("my run.gin", "pretrain.gin")) != first


def test_wheel_of_this_repository_holds_trainer_launchers_and_gin_files(tmp_path):
    wheel = build_wheel(str(tmp_path))
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("trainer/main.py", "launch/local.py", "launch/tpu/agent.py", "trainer/gin_files/pretrain.gin"):
        assert name in names
    assert not [name for name in names if name.startswith("tests/")]
