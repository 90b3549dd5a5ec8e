"""Jobs of several processes under `launch/local.sh`: one is killed, or hangs, at random; the job goes on by itself."""

import glob
import json
import os
import random
import signal

import psutil
import pytest
import trainer_process

pytestmark = pytest.mark.slow

STEPS = 120
PARAMETERS = (f"steps={STEPS}", "eval_every=60", "checkpoint_every=10")


def job(gin, run_dir, processes, *parameters):
    options = ["--processes", processes, "--gin", gin, "--run_dir", run_dir]
    changes = [part for text in (*PARAMETERS, *parameters) for part in ("--gin_param", text)]
    return trainer_process.Process("-m", "launch.local", *map(str, options), *changes)


def worker_ids(launcher):
    """Returns the process numbers of the trainers of a launcher, in the order of their start."""
    keepers = psutil.Process(launcher.pid).children()
    return [child.pid for keeper in keepers for child in keeper.children() if "trainer" in child.cmdline()]


def attempts(run_dir):
    ended = {}
    for line in (run_dir / "attempts.jsonl").read_text().splitlines():
        event = json.loads(line)
        if "ended_at" in event:
            ended[event["number"]] = event["code"]
    return list(ended.values())


@pytest.fixture(scope="module")
def undisturbed(tiny_gin, tmp_path_factory):
    """Runs a job of so many processes once; returns its run directory."""
    done = {}

    def run(processes):
        if processes not in done:
            run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
            with job(tiny_gin, run_dir, processes) as launcher:
                finished = launcher.finish()
            assert finished.code == 0, finished.text
            assert attempts(run_dir) == [0]
            done[processes] = run_dir
        return done[processes]

    return run


def assert_same_run(run_dir, expected):
    assert trainer_process.metrics(run_dir) == trainer_process.metrics(expected)
    assert trainer_process.metrics(run_dir, "eval") == trainer_process.metrics(expected, "eval")
    trainer_process.assert_same_bits(
        trainer_process.checkpoint_values(run_dir, STEPS), trainer_process.checkpoint_values(expected, STEPS)
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_job_of_which_one_process_is_killed_ends_with_the_bits_of_an_undisturbed_one(
    tiny_gin, undisturbed, tmp_path, processes
):
    expected, run_dir, rng = undisturbed(processes), tmp_path / "run", random.Random(processes)
    with job(tiny_gin, run_dir, processes) as launcher:
        launcher.wait_until(lambda: trainer_process.last_step(run_dir) >= rng.randint(15, 60), "some steps")
        victim = rng.choice(worker_ids(launcher))
        os.kill(victim, signal.SIGKILL)
        finished = launcher.finish()
    assert finished.code == 0, finished.text
    assert "a worker was lost (SIGKILL); starting again" in finished.errors
    assert attempts(run_dir) == [128 + signal.SIGKILL, 0]
    assert_same_run(run_dir, expected)


def test_job_of_which_one_process_hangs_is_found_and_goes_on_with_the_same_bits(tiny_gin, undisturbed, tmp_path):
    expected, run_dir = undisturbed(2), tmp_path / "run"
    with job(tiny_gin, run_dir, 2, "run.watchdog_seconds=5.0") as launcher:
        launcher.wait_until(lambda: trainer_process.last_step(run_dir) >= 20, "some steps")
        os.kill(worker_ids(launcher)[1], signal.SIGSTOP)
        finished = launcher.finish()
    assert finished.code == 0, finished.text
    assert "no sign of life from worker" in finished.errors and "starting again" in finished.errors
    # The process that waits for the one that was stopped may find by itself that it is lost.
    assert attempts(run_dir) in ([124, 0], [75, 0])
    stacks = [path for path in glob.glob(str(run_dir / "stacks-*.txt")) if os.path.getsize(path)]
    assert stacks or attempts(run_dir) == [75, 0]
    assert_same_run(run_dir, expected)
