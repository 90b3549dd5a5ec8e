import glob
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from trainer.errors import InputError
from trainer.training.watchdog import Watchdog

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Reports(list):
    def __call__(self, message):
        self.append(message)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_a_hang_is_written_down_with_the_stacks_of_all_threads(tmp_path):
    reports = Reports()
    release = threading.Event()

    def stuck_reader():
        release.wait()

    thread = threading.Thread(target=stuck_reader)
    thread.start()
    try:
        with Watchdog(0.2, tmp_path, reports) as watchdog:
            watchdog.beat(41)
            wait_until(lambda: len(reports) >= 2)  # and again, as long as nothing moves
    finally:
        release.set()
        thread.join()
    paths = [re.search(r"\S+stacks-\S+-\d+-\d+\.txt", report).group() for report in reports]
    assert len(set(paths)) == len(paths)
    for path in paths[:2]:
        with open(path) as file:
            text = file.read()
        assert "stuck_reader" in text and "wait_until" in text and "after step 41" in text
    assert sorted(glob.glob(str(tmp_path / "*"))) == sorted(paths)  # no empty file stays


def test_beats_keep_it_quiet(tmp_path):
    reports = Reports()
    with Watchdog(2.0, tmp_path, reports) as watchdog:
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            watchdog.beat(1)
            time.sleep(0.01)
    assert reports == [] and os.listdir(tmp_path) == []


def test_compilation_may_take_longer(tmp_path):
    reports = Reports()
    with Watchdog(0.1, tmp_path, reports) as watchdog:
        with watchdog.allowance():
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                time.sleep(0.01)
            assert reports == []
        wait_until(lambda: reports)  # the end of the allowance winds the clock up again
        del reports[:]
        with watchdog.allowance(0.3):
            wait_until(lambda: reports)  # an allowance has its own end


def test_files_left_empty_by_killed_processes_are_removed(tmp_path):
    host = os.uname().nodename
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    dead = tmp_path / f"stacks-{host}-{process.pid}-1.txt"
    filled = tmp_path / f"stacks-{host}-{process.pid}-2.txt"
    living = tmp_path / f"stacks-{host}-{os.getppid()}-1.txt"
    for path in (dead, filled, living):
        path.touch()
    filled.write_text("stacks")
    with Watchdog(60, tmp_path, Reports()):
        pass
    assert not dead.exists() and filled.exists() and living.exists()


def test_a_timeout_that_is_not_positive_is_refused(tmp_path):
    with pytest.raises(InputError, match="got 0"):
        Watchdog(0, tmp_path)


# PyDLL calls keep the interpreter lock: no Python thread can run meanwhile, the watchdog's neither.
HANGING = """
import ctypes, sys
from trainer.training.watchdog import Watchdog
def hang_with_the_interpreter_lock():
    ctypes.PyDLL(None).pause()
with Watchdog(0.3, sys.argv[1]) as watchdog:
    watchdog.beat(1)
    hang_with_the_interpreter_lock()
"""


def test_a_hang_that_holds_the_interpreter_lock_is_written_down(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path)], env=os.environ | {"PYTHONPATH": ROOT}
    ) as process:
        try:
            read = lambda: "".join(path.read_text() for path in tmp_path.glob(f"stacks-*-{process.pid}-1.txt"))
            wait_until(lambda: "hang_with_the_interpreter_lock" in read())
        finally:
            process.kill()
