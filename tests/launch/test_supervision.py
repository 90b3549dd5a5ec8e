"""When a job is started again and when it is given up: progress, hung workers, the record of attempts."""

import json
import os
import sys
import time

import pytest

from launch.attempts import Attempt, Attempts, goodput
from launch.exit_codes import HUNG, cause, describe, worth_restarting
from launch.heartbeats import VARIABLE
from launch.processes import Command
from launch.supervision import supervise
from trainer.training import heartbeat

# Says that it did a step, that the next sign of life is due so many seconds from now, and then does what it is told.
WORKER = """
import os, struct, sys, time
step, due, then = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
with open(os.environ["BERT_TRAINER_HEARTBEAT"], "wb") as file:
    file.write(struct.pack("<dq", time.monotonic() + due, step))
if then == "hang":
    time.sleep(600)
if then == "die":
    os.kill(os.getpid(), 11)
sys.exit(int(then))
"""


def worker(step, then, due=3600.0):
    return Command((sys.executable, "-S", "-c", WORKER, str(step), str(due), str(then)))


def supervised(*commands, **options):
    """Supervises a job of one worker that does something else in each attempt; returns (exit code, attempts)."""
    made = []

    def make_commands(number):
        made.append(number)
        return [commands[min(number, len(commands) - 1)]]

    code = supervise(make_commands, backoff_seconds=0.01, **{"takedown_seconds": 0.5, **options})
    return code, len(made)


def test_the_trainer_and_the_launcher_mean_the_same_variable_and_record(tmp_path, monkeypatch):
    from launch.heartbeats import Heartbeats

    assert heartbeat.VARIABLE == VARIABLE
    heartbeats = Heartbeats()
    monkeypatch.setenv(VARIABLE, heartbeats.environment(3)[VARIABLE])
    assert heartbeats.of(3).step is None and not heartbeats.is_overdue(3)
    written = heartbeat.Heartbeat.from_environment()
    assert heartbeats.of(3).step is None and heartbeats.of(3).deadline == float("inf")
    written.write(time.monotonic() - 3600.0, 7)
    assert heartbeats.of(3).step == 7 and heartbeats.is_overdue(3)
    written.write(time.monotonic() + 3600.0, 8)
    assert not heartbeats.is_overdue(3)
    folder = os.path.dirname(heartbeats.environment(0)[VARIABLE])
    heartbeats.close()
    assert not os.path.exists(folder)


def test_hung_job_is_stopped_and_started_again(monkeypatch, capfd):
    monkeypatch.setattr("launch.heartbeats._GRACE_SECONDS", 0.0)
    assert supervised(worker(5, "hang", due=0.1), worker(9, 0)) == (0, 2)
    assert "no sign of life from worker 0" in capfd.readouterr().err


def test_job_that_hangs_at_the_same_step_again_is_given_up(monkeypatch, capfd):
    monkeypatch.setattr("launch.heartbeats._GRACE_SECONDS", 0.0)
    assert supervised(worker(5, "hang", due=0.1)) == (HUNG, 2)
    assert "the job hung at step 5, as the time before" in capfd.readouterr().err


def test_worker_that_dies_at_the_same_step_twice_ends_the_job(capfd):
    assert supervised(worker(5, "die"), max_restarts=10) == (128 + 11, 2)
    assert "--mode replay --step 6" in capfd.readouterr().err


def test_worker_that_dies_at_other_steps_uses_up_the_restarts_only_without_progress():
    # 5, then less than it had: one restart without progress; then further: they count anew.
    steps = [worker(5, "die"), worker(4, "die"), worker(8, "die"), worker(7, "die"), worker(9, 0)]
    assert supervised(*steps, max_restarts=2) == (0, 5)
    assert supervised(*steps, max_restarts=1) == (128 + 11, 2)


def test_preemption_at_the_same_step_is_nobodys_fault():
    assert supervised(worker(5, 75), worker(5, 75), worker(6, 0)) == (0, 3)


def test_attempts_are_recorded_and_numbered_over_the_life_of_the_run(tmp_path):
    record = Attempts(str(tmp_path / "run"))
    supervised(worker(5, 75), worker(7, "die"), worker(9, 0), attempts=record)
    supervised(worker(9, 2), attempts=record)
    found = [(attempt.number, attempt.code, attempt.step) for attempt in record.read()]
    assert found == [(0, 75, 5), (1, 139, 7), (2, 0, 9), (3, 2, 9)]
    assert record.read()[1].reason == "killed by SIGSEGV"
    assert all(attempt.seconds >= 0 and attempt.ended_at for attempt in record.read())


def test_record_outlives_a_torn_line_and_a_folder_that_cannot_be_written(tmp_path):
    record = Attempts(str(tmp_path))
    number = record.begin()
    with open(record.path, "a") as file:
        file.write('{"number": 0, "ended')
    record.see(number, 3)
    record.end(number, 75, 4, "preempted")
    assert [(attempt.code, attempt.step) for attempt in record.read()] == [(75, 4)]
    assert record.begin() == 1
    (tmp_path / "file").write_text("")
    nowhere = Attempts(str(tmp_path / "file" / "folder"))
    nowhere.end(nowhere.begin(), 0)
    assert nowhere.read() == []


def test_goodput_is_the_share_of_the_time_that_went_into_the_steps_there_are():
    attempts = [
        Attempt(0, began_at=1000.0, ended_at=1100.0, step=50),
        Attempt(1, began_at=1200.0, seen_at=1300.0, step=90),
    ]
    assert goodput(attempts, {"step": 90, "seconds_per_step": 1.0}) == pytest.approx(0.45)
    assert goodput(attempts, {"step": 90, "seconds_per_step": None}) is None
    assert goodput(attempts, None) is None and goodput([], {"step": 1, "seconds_per_step": 1.0}) is None


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([70, 137], 137), ([70, 75], 75), ([70, 74, 75], 74), ([1, 70, 2], 2), ([3, 0], 3), ([None, 0], 137)],
)
def test_cause_of_a_jobs_end(codes, expected):
    assert cause(codes) == expected


def test_every_exit_code_has_words_and_only_some_are_worth_a_restart():
    assert [code for code in range(256) if worth_restarting(code)] == [75, 124, *range(129, 193)]
    assert describe(137) == "killed by SIGKILL" and describe(2) == "exit code 2: wrong configuration or input"
    assert describe(191) == "killed by signal 63" or "SIGRT" in describe(191)
    assert json.dumps(describe(1)) == '"exit code 1"'
