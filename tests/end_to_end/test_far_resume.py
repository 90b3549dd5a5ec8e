"""Resuming far into a long schedule reads no more than starting: positions are sought, never replayed."""

import hashlib
import os
import shutil

import pytest
import tensorflow as tf
import trainer_process
from data.small_data_sets import change_manifest, write_data_set

from trainer.training.checkpoints import CheckpointManager

FAR = 100_000

# Runs the trainer and tells at the end how many bytes the process has read, whatever they were.
COUNTING = """
import atexit, runpy
def tell():
    with open("/proc/self/io") as file:
        print("bytes read:", int(file.readline().split()[1]))
atexit.register(tell)
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


def train_counting(gin, run_dir, data, steps, cache):
    """Trains up to a step; returns what was printed, and the bytes that the whole process read."""
    parameters = (f"data='{data}'", f"steps={steps}", "eval_every=None", "checkpoint_every=4")
    unchecked = "pretraining_data.check=False"  # the check before training reads everything, however far the run is
    arguments = trainer_process.trainer_arguments(gin, run_dir, *parameters, unchecked)[2:]
    finished = trainer_process.run_python("-c", COUNTING, *arguments, XDG_CACHE_HOME=str(cache))
    assert finished.code == 0, finished.text
    return finished.output, int(finished.output.rpartition("bytes read:")[2])


@pytest.mark.slow  # two processes that compile
@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="the kernel does not count the bytes a process reads")
def test_resuming_at_step_100_000_reads_no_more_data_than_starting_at_0(tiny_gin, small_corpus, tmp_path):
    vocabulary = (small_corpus / "vocab.txt").read_bytes()
    size = vocabulary.count(b"\n")
    manifest = write_data_set(str(tmp_path / "data"), [60_000] * 4, length=16, vocabulary_size=size)
    shutil.copy(small_corpus / "vocab.txt", tmp_path / "data")
    digest = hashlib.sha256(vocabulary).hexdigest()
    change_manifest(str(tmp_path / "data"), manifest, vocabulary_sha256=digest)
    data_bytes = sum(shard.bytes for shard in manifest.splits["train"])
    _, at_start = train_counting(tiny_gin, tmp_path / "near", tmp_path / "data", 4, tmp_path / "cache_near")

    values = trainer_process.checkpoint_values(tmp_path / "near", 4)
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    variables = {name.removesuffix(suffix): tf.Variable(value) for name, value in values.items()}
    variables["step"].assign(FAR)
    CheckpointManager(str(tmp_path / "far" / "checkpoints"), variables).save(FAR, wait=True)
    output, far = train_counting(tiny_gin, tmp_path / "far", tmp_path / "data", FAR + 4, tmp_path / "cache_far")

    assert f"resumed at step {FAR} of {FAR + 4}" in output
    assert sorted(trainer_process.metrics(tmp_path / "far")) == list(range(FAR + 1, FAR + 5))
    assert trainer_process.status(tmp_path / "far")["state"] == "finished"
    # What lies before step 100,000 is several times the data; a twentieth of it is left for other files.
    assert 5 * manifest.rows("train") < FAR * 16
    assert far < at_start + data_bytes / 20
