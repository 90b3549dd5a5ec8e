"""Batch arithmetic and strategies: what divides, what is refused, and with which advice."""

import pytest

from trainer.distribution import create_cluster, divide_batch
from trainer.errors import InputError


@pytest.mark.parametrize(
    ("global_batch", "replicas", "microbatch", "largest", "expected"),
    [
        (256, 4, 8, 1, "global 256 = 4 replicas x 8 accumulation x 8 microbatch"),
        (256, 1, "auto", 48, "global 256 = 1 replica x 8 accumulation x 32 microbatch"),
        (60, 1, "auto", 64, "global 60 = 1 replica x 1 accumulation x 60 microbatch"),
        (60, 1, "auto", 16, "global 60 = 1 replica x 15 accumulation x 4 microbatch"),
        (7, 7, "auto", 9, "global 7 = 7 replicas x 1 accumulation x 1 microbatch"),
    ],
)
def test_the_global_batch_is_divided(global_batch, replicas, microbatch, largest, expected):
    batch = divide_batch(global_batch, replicas, microbatch, largest)
    assert str(batch) == expected
    assert batch.replicas * batch.accumulation * batch.microbatch == global_batch


@pytest.mark.parametrize(
    ("global_batch", "replicas", "microbatch", "message"),
    [
        (250, 4, 8, "take 248 or 252"),
        (256, 4, 24, "take 16 or 32"),
        (256, 4, 100, "take 64, or"),
        (256, 4, 0, "at least 1"),
        (0, 1, 1, "at least 1"),
        (8, 1, "most", "'auto' or a whole number"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(global_batch, replicas, microbatch, message):
    with pytest.raises(InputError, match=message):
        divide_batch(global_batch, replicas, microbatch, 64)


def test_unknown_strategies_and_missing_devices_are_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(InputError, match="cpu, one_device"):
        create_cluster("gpu")
    with pytest.raises(InputError, match="needs a cluster"):
        create_cluster("multi_worker")
    with pytest.raises(InputError, match="number of at least 1"):
        create_cluster("cpu", 0)
    monkeypatch.setenv("TF_CONFIG", "{broken")
    with pytest.raises(InputError, match="not valid JSON"):
        create_cluster("multi_worker")


def test_logical_cpu_devices_are_replicas():
    cluster = create_cluster("cpu", 2)
    assert cluster.replicas == 2
    assert cluster.describe() == "strategy cpu, 2 replicas on CPU:0, CPU:1"
    assert cluster.any(True) and not cluster.any(False)
