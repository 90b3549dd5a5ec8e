import json
import math
import os
import resource
import struct

import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import InputError
from trainer.training.run_directory import RunDirectory, read_metrics


class Reports(list):
    def __call__(self, message):
        self.append(message)


def test_status_tells_what_the_run_does(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert run.write_status("training", np.int64(3), 10)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert set(status) == {"state", "step", "total", "updated_at", "host", "pid", "last_error", "seconds_per_step"}
    assert (status["state"], status["step"], status["total"], status["pid"]) == ("training", 3, 10, os.getpid())
    assert status["updated_at"].endswith("+00:00") and status["last_error"] is None


def test_floats_come_back_bit_for_bit(tmp_path):
    run = RunDirectory(tmp_path)
    numbers = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    run.append_metrics([{"step": i, "kind": "train", "loss": x} for i, x in enumerate(numbers)])
    run.append_metrics(
        [{"step": 1000, "kind": "train", "loss": 0.1 + 0.2, "tensor": tf.constant(1.1), "n": np.int64(7)}]
    )
    records = read_metrics(tmp_path)
    assert np.array_equal(
        np.array([r["loss"] for r in records[:-1]], np.float32).view(np.uint32), numbers.view(np.uint32)
    )
    assert struct.pack("d", records[-1]["loss"]) == struct.pack("d", 0.1 + 0.2)
    assert records[-1]["tensor"] == float(np.float32(1.1)) and records[-1]["n"] == 7


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    run = RunDirectory(tmp_path)
    run.append_metrics([{"step": 1, "kind": "train", "loss": np.float32("nan"), "a": math.inf, "b": -math.inf}])

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["a"], line["b"]) == ("NaN", "Infinity", "-Infinity")
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["loss"]) and record["a"] == math.inf and record["b"] == -math.inf


def test_the_last_record_of_a_step_and_kind_counts(tmp_path):
    run = RunDirectory(tmp_path)
    for loss in (3.0, 2.0):
        run.append_metrics([{"step": 2, "kind": "train", "loss": loss}, {"step": 1, "kind": "train", "loss": loss}])
    run.append_metrics([{"step": 1, "kind": "eval", "loss": 9.0}])
    assert [(r["step"], r["kind"], r["loss"]) for r in read_metrics(run.metrics_path)] == [
        (1, "train", 2.0),
        (1, "eval", 9.0),
        (2, "train", 2.0),
    ]


WHOLE = b'{"step": 1, "kind": "train", "loss": 1.0}\n'


@pytest.mark.parametrize(
    ("tail", "steps"),
    [
        (b"", [1, 3]),
        (b'{"step": 2, "kind": "tra', [1, 3]),
        (b"{", [1, 3]),
        (b"\0" * 70_000, [1, 3]),
        (b'{"step": 2, "kind": "train", "loss": 2.0}', [1, 2, 3]),
        (b"12", [1, 3]),
    ],
)
def test_a_torn_last_line_is_repaired_on_opening(tmp_path, tail, steps):
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE + tail)
    assert [r["step"] for r in read_metrics(tmp_path)] == steps[:-1]
    run = RunDirectory(tmp_path)
    run.append_metrics([{"step": 3, "kind": "train", "loss": 3.0}])
    assert [r["step"] for r in read_metrics(tmp_path)] == steps
    for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines():
        json.loads(line)


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(WHOLE + b"broken\n" + WHOLE)
    with pytest.raises(InputError, match="line 2"):
        read_metrics(tmp_path)


def test_reading_where_there_is_nothing_says_what_to_name(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


def test_only_the_chief_writes(tmp_path):
    run = RunDirectory(tmp_path, is_chief=False)
    run.write_status("training", 1, 2)
    run.append_metrics([{"step": 1, "kind": "train"}])
    run.close()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_loses_no_line_and_warns_once(tmp_path):
    reports = Reports()
    run = RunDirectory(tmp_path, report=reports)
    write = lambda step: run.append_metrics([{"step": step, "kind": "train", "note": "x" * 100}])
    write(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel lets a write end in the middle of a line, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        for step in range(1, 5):
            write(step)
            assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(reports) == 1 and "training goes on" in reports[0]
    write(5)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 4, 5]


def test_a_status_that_cannot_be_written_warns_once_and_does_not_raise(tmp_path):
    reports = Reports()
    run = RunDirectory(tmp_path, report=reports)
    (tmp_path / "status.json").mkdir()
    assert not run.write_status("training", 1, 2)
    assert not run.write_status("training", 2, 2)
    assert len(reports) == 1 and "status.json" in reports[0]
