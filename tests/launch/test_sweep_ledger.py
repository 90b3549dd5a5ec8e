"""The ledger: whatever moment a sweep is killed at, what was written before holds."""

import json
import os
import subprocess
import sys

import pytest
from sweep_process import ROOT

from launch.sweep.ledger import FAILED, FINISHED, RUNNING, WAITING, Ledger, SweepLock, holder_of


def written(folder):
    """Writes the ledger of a short story; returns its bytes."""
    ledger = Ledger(folder)
    ledger.append("request", request={"a": "ü"})
    for value in ("1", "2"):
        ledger.add((("seed", value),), lambda number: f"trial-{number}")
    ledger.append("start", trial=1, via="local")
    ledger.append("end", trial=1, state=FAILED, code=70, error="not finite", seconds=2.5)
    ledger.append("start", trial=1, via="local")
    ledger.append("end", trial=1, state=FINISHED, code=0, error=None, seconds=1.5)
    ledger.append("start", trial=2, via="local")
    ledger.close()
    return (folder / "ledger.jsonl").read_bytes()


def told(ledger):
    return [ledger.request, *(vars(trial) for trial in ledger.trials.values())]


def test_what_was_written_is_read_again(tmp_path):
    written(tmp_path)
    ledger = Ledger(tmp_path)
    first, second = ledger.trials[1], ledger.trials[2]
    assert ledger.request == {"a": "ü"}
    assert (first.state, first.code, first.error, first.starts, first.seconds) == (FINISHED, 0, None, 2, 4.0)
    assert (second.state, second.starts, second.parameters) == (RUNNING, 1, (("seed", "2"),))


def test_ledger_cut_anywhere_holds_all_whole_events_and_goes_on(tmp_path):
    content = written(tmp_path)
    lines = content.splitlines(keepends=True)
    for length in range(len(content) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        reference = tmp_path / f"whole-{whole}"
        if not reference.exists():
            reference.mkdir()
            (reference / "ledger.jsonl").write_bytes(b"".join(lines[:whole]))
        ledger = Ledger(folder)
        assert told(ledger) == told(Ledger(reference))
        trial = ledger.add((("seed", "9"),), lambda number: f"trial-{number}")
        ledger.close()
        assert Ledger(folder).trials[trial.number].state == WAITING
        assert (folder / "ledger.jsonl").read_bytes().startswith(b"".join(lines[:whole]))


def test_damage_in_the_middle_is_told_with_its_line(tmp_path):
    lines = written(tmp_path).splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join([*lines[:2], b"?\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"ledger.jsonl line 3 is no event"):
        Ledger(tmp_path)


def test_line_that_a_full_disk_took_in_part_is_taken_back(tmp_path, monkeypatch):
    before = written(tmp_path)
    ledger = Ledger(tmp_path)
    write = os.write

    def write_a_part(descriptor, content):
        write(descriptor, content[:10])
        raise OSError(28, "No space left on device")

    ledger.append("start", trial=2, via="local")
    monkeypatch.setattr(os, "write", write_a_part)
    with pytest.raises(OSError):
        ledger.append("end", trial=2, state=FINISHED)
    monkeypatch.undo()
    ledger.append("end", trial=2, state=FINISHED, code=0)
    ledger.close()
    added = (tmp_path / "ledger.jsonl").read_bytes()[len(before) :].splitlines()
    assert [json.loads(line)["event"] for line in added] == ["start", "end"]


def test_second_sweep_in_a_folder_is_refused_until_the_first_is_dead(tmp_path):
    code = (
        "import sys, time; from launch.sweep.ledger import SweepLock\n"
        "with SweepLock(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert holder_of(tmp_path)["pid"] == process.pid
        with pytest.raises(ValueError, match=f"process {process.pid} on .* runs the sweep"), SweepLock(tmp_path):
            pass
        process.kill()
        process.wait()
    assert holder_of(tmp_path) is None
    with SweepLock(tmp_path):
        assert holder_of(tmp_path)["pid"] == os.getpid()
    assert holder_of(tmp_path) is None
    assert holder_of(tmp_path / "nowhere") is None
