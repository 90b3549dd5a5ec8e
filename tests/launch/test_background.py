"""Jobs in the background: started with --detach, found again, looked at and stopped."""

import json
import os
import signal
import subprocess
import sys

import pytest
from waiting import DEADLINE_SECONDS, eventually

from launch import background
from launch.run_files import job_folder, read_status

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Stands in for the launcher: takes its time until it is told to stop.
LAUNCHER = """
import signal, sys, time
from launch.background import recorded
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with recorded(sys.argv[1]) as ended:
    print("works", flush=True)
    while not stopped:
        time.sleep(0.02)
    ended(75)
"""


@pytest.fixture
def launcher(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_launcher_is_found_while_it_runs_and_stopped(tmp_path, launcher, capfd):
    assert background.find(str(tmp_path))["pid"] == launcher.pid
    assert background.show_status(str(tmp_path), "launch/local.sh") == 0
    assert f"process {launcher.pid} runs" in capfd.readouterr().out
    assert background.stop(str(tmp_path)) == 0
    assert "exit code 75: preempted, state saved" in capfd.readouterr().err
    assert background.find(str(tmp_path)) is None
    assert background.stop(str(tmp_path)) == 2


def test_second_launcher_is_not_started_beside_the_first(tmp_path, launcher, capfd):
    assert background.detach("launch.local", ["--gin", "x"], str(tmp_path), "launch/local.sh") == 2
    assert f"process {launcher.pid} already runs" in capfd.readouterr().err


def test_killed_launcher_is_not_taken_for_another_process_with_its_number(tmp_path, launcher, capfd):
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    assert background.find(str(tmp_path)) is None
    path = tmp_path / background.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": os.getpid()}))  # another one has the number now
    assert background.find(str(tmp_path)) is None
    assert background.show_status(str(tmp_path), "launch/local.sh") == 0
    assert "is gone without saying how" in capfd.readouterr().out


def test_damaged_record_is_none(tmp_path):
    for text in ("", "[]", "{}", '{"pid": 1', "null"):
        (tmp_path / background.FILE).write_text(text)
        assert background.find(str(tmp_path)) is None


def test_status_of_nothing_is_told(tmp_path, capfd):
    assert background.show_status(str(tmp_path), "launch/local.sh") == 2
    assert "nothing was started" in capfd.readouterr().err


def test_status_tells_step_time_left_error_and_attempts(tmp_path, capfd):
    status = {"state": "training", "step": 50, "total": 200, "updated_at": "2026-01-01T00:00:00+00:00", "host": "h"}
    status |= {"pid": 1, "last_error": "loss is not finite", "seconds_per_step": 2.0}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert read_status(str(tmp_path)) == status
    record = background.Attempts(str(tmp_path))
    record.end(record.begin(), 137, 50, "killed by SIGKILL")
    assert background.show_status(str(tmp_path), "launch/local.sh") == 0
    out = capfd.readouterr().out
    for expected in ("step 50 of 200, 25.0%", "5 min 00 s at 2 s a step", "loss is not finite", "killed by SIGKILL"):
        assert expected in out


def test_logs_are_followed_until_the_job_ends(tmp_path, launcher):
    log = tmp_path / "logs" / background.LOG
    log.parent.mkdir()
    log.write_text("first\n")
    code = f"from launch.background import show_logs; show_logs({str(tmp_path)!r}, follow=True)"
    follower = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert follower.stdout.readline() == "first\n"
    with open(log, "a") as file:
        file.write("second\n")
    assert follower.stdout.readline() == "second\n"
    launcher.terminate()
    assert follower.communicate(timeout=DEADLINE_SECONDS)[0] == "" and follower.returncode == 0


def test_log_that_is_not_there_is_told(tmp_path, capfd):
    assert background.show_logs(str(tmp_path), worker=3) == 2
    assert "worker-3.log" in capfd.readouterr().err


def test_jobs_in_buckets_have_a_folder_of_their_own_here(tmp_path):
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    folders = [job_folder(run_dir, environment) for run_dir in ("gs://b/run/a", "gs://b/run-a", "runs/a")]
    assert len(set(folders)) == 3 and folders[2] == "runs/a"
    assert all(os.path.dirname(folder) == str(tmp_path / "bert-trainer") for folder in folders[:2])


def test_whole_command_in_the_background(tmp_path):
    run_dir = str(tmp_path / "run")

    def launch(*arguments):
        command = [os.path.join(ROOT, "launch", "local.sh"), *arguments, "--run_dir", run_dir]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable}
        )

    assert launch("--gin", "no_such.gin", "--detach").returncode == 0
    ended = eventually(lambda: "ended with" in (told := launch("status").stdout) and told, "its end")
    assert "exit code 2: wrong configuration or input" in ended
    assert "no_such.gin" in launch("logs").stdout
    assert launch("stop").returncode == 2
