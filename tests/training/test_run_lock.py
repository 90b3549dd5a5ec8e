import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from trainer.errors import InputError
from trainer.training import run_lock
from trainer.training.run_lock import LocalRecord, RunLock, StoredRecord


class Reports(list):
    def __call__(self, message):
        self.append(message)


def make_lock(path, **options):
    options = {"heartbeat_seconds": 0.05, "stale_seconds": 0.5, "report": Reports()} | options
    return RunLock(path, **options)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.lock")


def record_of(pid, **changes):
    """A record as a process of this machine would write it."""
    record = {
        **run_lock._machine(),
        "pid": pid,
        "process_started": run_lock._process_started(pid),
        "nonce": "other",
        "beat": 1,
        "updated_at": time.time(),
    }
    return json.dumps(record | changes).encode()


def put(path, content):
    with open(path, "wb") as file:
        file.write(content)


def test_a_second_job_is_refused_with_owner_and_remedy(path):
    message = rf"process {os.getpid()} on host .*last heartbeat .*--run_dir.*kill"
    with make_lock(path), pytest.raises(InputError, match=message):
        make_lock(path).acquire()
    with make_lock(path):  # released, so free again
        pass
    assert not os.path.exists(path)


def test_the_heartbeat_changes_the_record(path):
    with make_lock(path):
        read = lambda: json.loads(LocalRecord(path).read() or b"{}").get("beat", 0)
        first = read()
        wait_until(lambda: read() > first + 2)


def test_a_dead_process_of_this_machine_is_replaced_at_once(path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        put(path, record_of(process.pid))
        with pytest.raises(InputError, match=f"process {process.pid}"):
            make_lock(path).acquire()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead, too
        reports = Reports()
        # So long that only "at once" can pass within the time limit of a test.
        with make_lock(path, report=reports, stale_seconds=10_000.0):
            assert any("taking over" in message for message in reports)
    put(path, record_of(process.pid, process_started="1"))
    with make_lock(path, stale_seconds=10_000.0):
        pass


def test_a_process_number_used_again_is_not_the_owner(path):
    put(path, record_of(os.getpid(), process_started="12345"))
    with make_lock(path, stale_seconds=10_000.0):
        pass


def test_a_suspended_process_keeps_its_lock(path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            os.kill(process.pid, signal.SIGSTOP)
            put(path, record_of(process.pid, updated_at=time.time() - 3600))
            with pytest.raises(InputError, match="last heartbeat 3600 s ago"):
                make_lock(path).acquire()
        finally:
            process.kill()


@pytest.mark.parametrize("clock_error", [-1e6, 0.0, 1e6])
def test_another_host_is_replaced_only_when_its_record_stands_still(path, clock_error):
    foreign = {"host": "elsewhere", "updated_at": time.time() + clock_error}
    put(path, record_of(1, **foreign))
    reports = Reports()
    with make_lock(path, report=reports):
        assert "elsewhere" in reports[0] and "watching" in reports[0] and "taking over" in reports[-1]

    put(path, record_of(1, **foreign))
    stop = threading.Event()

    def beat():
        number, content = 1, LocalRecord(path).read()
        while not stop.wait(0.02):
            number += 1
            before, content = content, record_of(1, beat=number, **foreign)
            assert LocalRecord(path).write(content, before)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 1 on host elsewhere"):
            make_lock(path, stale_seconds=10.0).acquire()
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("content", [b"garbage", b"{}", b"[1]", b'{"pid": "x"}'])
def test_an_unreadable_record_is_watched_then_replaced(path, content):
    put(path, content)
    with make_lock(path):
        assert json.loads(LocalRecord(path).read())["pid"] == os.getpid()


@pytest.mark.parametrize("before", [None, "stale"])
def test_of_many_starters_at_the_same_instant_one_wins(path, before):
    for _ in range(10):
        if before:
            put(path, record_of(os.getpid(), process_started="1"))
        barrier = threading.Barrier(8)
        locks, refused = [], []

        def start(barrier=barrier, locks=locks, refused=refused):
            lock = make_lock(path)
            barrier.wait()
            try:
                lock.acquire()
                locks.append(lock)
            except InputError:
                refused.append(lock)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(locks), len(refused)) == (1, 7)
        locks[0].release()


def test_a_job_that_was_replaced_learns_of_it_and_leaves_the_lock_alone(path):
    lost = Reports()
    lock = make_lock(path, on_lost=lost)
    with lock:
        lock.check()
        put(path, record_of(1, host="elsewhere"))
        wait_until(lambda: lock.lost)
        with pytest.raises(InputError, match="taken over"):
            lock.check()
    assert len(lost) == 1
    assert json.loads(LocalRecord(path).read())["host"] == "elsewhere"


def test_a_lock_file_removed_by_hand_is_put_back(path):
    with make_lock(path):
        os.remove(path)
        wait_until(lambda: LocalRecord(path).read())


@pytest.mark.parametrize("store", [LocalRecord, lambda path: StoredRecord(path, settle_seconds=0.01)])
def test_records_are_replaced_only_by_who_knows_the_last(path, store):
    record = store(path)
    assert record.read() is None
    assert record.write(b'{"pid": 1, "nonce": "a"}', None)
    assert not record.write(b'{"pid": 2, "nonce": "b"}', None)
    assert not record.write(b'{"pid": 2, "nonce": "b"}', b"something else")
    assert record.write(b'{"pid": 2, "nonce": "b"}', b'{"pid": 1, "nonce": "a"}')
    record.delete(b'{"pid": 1, "nonce": "a"}')
    assert record.read() == b'{"pid": 2, "nonce": "b"}'
    record.delete(b'{"pid": 2, "nonce": "b"}')
    assert record.read() is None
