"""`launch/tpu.sh` through a whole life: the real gcloud, a simulated Cloud TPU, machines behind real ssh."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import trainer_process
from tpu import tpu_vm
from tpu.cloud_tpu_simulator import cloud_tpu_simulator

NO_VMS = tpu_vm.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed"),
    pytest.mark.skipif(NO_VMS is not None, reason=str(NO_VMS)),
]

STEPS = 400
NAME, ZONE = "bert-test", "us-west4-a"
LARGE_STEPS = ("global_batch=1024", "microbatch=8")  # so that the machine is taken away amid the run
PARAMETERS = (f"steps={STEPS}", "eval_every=200", "checkpoint_every=20", "log_every=4", *LARGE_STEPS)
DEADLINE_SECONDS = 900


@pytest.fixture
def simulator(tmp_path):
    """A Cloud TPU of this machine's own, whose machines find the Python of these tests."""
    own = {"PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    own |= {name: os.environ[name] for name in ("XDG_CACHE_HOME",) if name in os.environ}
    folder = tmp_path / "cloud"
    folder.mkdir()
    with cloud_tpu_simulator(folder, vm_environment=own) as running:
        yield running


class Launcher:
    """`launch/tpu.sh run` in a process of its own, which writes into a file.

    Args:
        simulator: the Cloud TPU.
        arguments: more of the command line.
        log: path of the file.
    """

    def __init__(self, simulator, arguments, log):
        self.log = log
        command = [
            *[os.path.join(trainer_process.ROOT, "launch", "tpu.sh"), "--accelerator", "v5litepod-8", "--zone", ZONE],
            *["--name", NAME, "--remote_python", sys.executable, "--allow_cpu", "--yes", "--poll_seconds", "1"],
            *["--backoff_seconds", "0.5", "--lost_minutes", "0.05", *arguments],
        ]
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command,
                env=trainer_process.environment(PYTHON=sys.executable) | simulator.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self):
        """Everything that it wrote."""
        with open(self.log, errors="replace") as file:
            return file.read()

    def wait_until(self, condition, what):
        """Polls until a condition holds; fails if the launcher ends before."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert self.process.poll() is None, f"the launcher ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.text}"
            time.sleep(0.1)

    def finish(self):
        """Waits for its end; returns the exit code."""
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self):
        """Kills it with all that it started here, as a laptop does whose battery is empty."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def launch(simulator, tiny_gin, tmp_path):
    """Starts launchers; kills what is left of them at the end."""
    started = []

    def start(run_dir, *others):
        changes = [part for text in PARAMETERS for part in ("--gin_param", text)]
        job = ["--gin", str(tiny_gin), *changes, "--run_dir", str(run_dir), *others]
        started.append(Launcher(simulator, job, tmp_path / "launcher.log"))
        return started[-1]

    yield start
    for launcher in started:
        if launcher.process.poll() is None:
            launcher.kill()


def test_job_that_loses_its_machine_three_times_and_its_launcher_ends_like_an_undisturbed_one(
    simulator, launch, tiny_gin, tmp_path
):
    run_dir, rng = tmp_path / "run", random.Random(6)

    def lets_train(launcher, machines):
        """Waits until some steps are done on so many-th machine."""

        def has_trained():
            return launcher.text.count("launch: asking for") == machines and simulator.state(f"nodes/{NAME}") == "READY"

        launcher.wait_until(has_trained, f"machine {machines}")
        goal = trainer_process.last_step(run_dir) + rng.randint(20, 60)
        launcher.wait_until(lambda: trainer_process.last_step(run_dir) >= goal, f"step {goal} on machine {machines}")

    launcher = launch(run_dir)
    lets_train(launcher, 1)
    simulator.preempt(NAME, notice_seconds=15)  # the trainer has time to save
    lets_train(launcher, 2)
    launcher.kill()  # another one takes up the job
    launcher = launch(run_dir)
    launcher.wait_until(lambda: f"{NAME} is in {ZONE}: going on with it" in launcher.text, "the second launcher")
    simulator.preempt(NAME)  # it has none
    lets_train(launcher, 3)
    simulator.lose(NAME, 0)  # gone, though every state says that it is well
    assert launcher.finish() == 0, launcher.text

    assert simulator.resources() == {}, "something is left and paid for"
    attempts = [json.loads(line) for line in (run_dir / "attempts.jsonl").read_text().splitlines()]
    assert len({attempt["number"] for attempt in attempts}) == 4
    assert "this machine is being preempted: saving" in launcher.text
    trainer_process.train(tiny_gin, tmp_path / "undisturbed", *PARAMETERS)
    assert trainer_process.metrics(run_dir) == trainer_process.metrics(tmp_path / "undisturbed")
    assert trainer_process.metrics(run_dir, "eval") == trainer_process.metrics(tmp_path / "undisturbed", "eval")
    trainer_process.assert_same_bits(
        trainer_process.checkpoint_values(run_dir, STEPS),
        trainer_process.checkpoint_values(tmp_path / "undisturbed", STEPS),
    )
    status = subprocess.run(
        [sys.executable, "-m", "launch.tpu", "status", "--name", NAME, "--zone", ZONE, "--run_dir", str(run_dir)],
        cwd=trainer_process.ROOT,
        env=os.environ | simulator.environment,
        capture_output=True,
        text=True,
    )
    assert f"finished at step {STEPS} of {STEPS}" in status.stdout and "goodput" in status.stdout, status


def test_configuration_that_is_wrong_costs_one_machine_for_a_moment(simulator, launch, tmp_path):
    launcher = launch(tmp_path / "run", "--gin_param", "no_such_thing=1")
    assert launcher.finish() == 2, launcher.text
    assert "no_such_thing" in launcher.text and simulator.resources() == {}


def test_spent_budget_saves_and_deletes(simulator, launch, tmp_path):
    run_dir = tmp_path / "run"
    launcher = launch(run_dir, "--gin_param", "steps=100000", "--max_hours", "0.01")
    assert launcher.finish() == 75, launcher.text
    assert "the budget is spent" in launcher.text and simulator.resources() == {}
    assert trainer_process.status(run_dir)["state"] == "preempted"
    assert max(trainer_process.committed_steps(run_dir)) == trainer_process.status(run_dir)["step"]
