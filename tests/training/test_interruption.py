import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from trainer.training.interruption import Interruption

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Reports(list):
    def __call__(self, message):
        self.append(message)


def test_sigterm_requests_a_stop_and_says_what_will_happen():
    reports = Reports()
    with Interruption(report=reports) as interruption:
        assert not interruption.requested and interruption.reason is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.wait(60)
    assert interruption.reason == "SIGTERM received"
    assert "saving at the next step boundary" in reports[0]


def test_a_first_ctrl_c_requests_a_stop_without_an_exception():
    reports = Reports()
    with Interruption(report=reports) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.wait(60)
    assert interruption.reason == "Ctrl-C"
    assert "press Ctrl-C again to exit at once" in reports[0]


@pytest.fixture
def python_handles_interrupts():
    """Python's own handler, which is not there where tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_interrupts")
def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(60)


def test_the_first_reason_stays():
    with Interruption(report=Reports()) as interruption:
        interruption.request("host 3 received SIGTERM")
        interruption.request("Ctrl-C")
    assert interruption.reason == "host 3 received SIGTERM"


def test_a_watcher_can_request_a_stop_and_one_that_fails_does_no_harm():
    answers = iter([None, None, "maintenance in 60 s"])
    reports = Reports()

    def broken():
        raise OSError("no metadata server")

    with Interruption(watchers=[broken, lambda: next(answers)], poll_seconds=0.01, report=reports) as interruption:
        assert interruption.wait(60)
    assert interruption.reason == "maintenance in 60 s"
    assert any("no metadata server" in message for message in reports)


# The main thread is inside C code that holds no interpreter lock and answers no Python handler, as TensorFlow does.
BLOCKED = """
import ctypes, os, sys
from trainer.training.interruption import Interruption
with Interruption(report=lambda message: os.write(1, (message + "\\n").encode())):
    os.write(1, b"ready\\n")
    lock = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(256)
    ctypes.CDLL(None).pthread_mutex_init(buffer, None)
    ctypes.CDLL(None).pthread_mutex_lock(buffer)
    ctypes.CDLL(None).pthread_mutex_lock(buffer)  # for ever: signals do not end it
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="blocks the main thread by means of Linux")
def test_signals_are_noticed_while_the_main_thread_is_inside_c_code_and_a_second_ctrl_c_exits():
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ROOT},
    ) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)  # the same press, forwarded by a launcher
            assert b"Ctrl-C: saving at the next step boundary" in process.stdout.readline()
            deadline = time.monotonic() + 60
            while process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
                process.send_signal(signal.SIGINT)
            assert process.returncode == 130
            assert b"exiting at once" in process.stderr.read()
        finally:
            process.kill()
