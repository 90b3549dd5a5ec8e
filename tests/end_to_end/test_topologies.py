"""One gin file, any hardware, the same run: losses of several devices and processes equal those of one device."""

import contextlib
import os
import pathlib
import re
import shutil
import signal

import pytest
import trainer_process
from small_corpora import prepare_small_corpus


def assert_same_losses(run_dir, expected_dir, steps=20, evaluations=2):
    for kind, count in (("train", steps), ("eval", evaluations)):
        ours, expected = (trainer_process.losses(folder, kind) for folder in (run_dir, expected_dir))
        assert len(expected) == count
        assert ours == pytest.approx(expected, rel=1e-5), kind
    ours, expected = (trainer_process.metrics(folder, "eval") for folder in (run_dir, expected_dir))
    for step, record in expected.items():
        assert ours[step] == pytest.approx(record, rel=1e-5)


def test_the_loss_falls(trained_run):
    first, last = (trainer_process.metrics(trained_run, "eval")[step]["loss"] for step in (10, 20))
    assert last < first < trainer_process.losses(trained_run)[0]


@pytest.mark.slow  # compiles for two devices
def test_losses_of_two_logical_devices_equal_one(tiny_gin, trained_run, tmp_path):
    finished = trainer_process.train(tiny_gin, tmp_path / "run", "devices=2")
    assert "global 16 = 2 replicas x 2 accumulation x 4 microbatch" in finished.output
    assert_same_losses(tmp_path / "run", trained_run)


@pytest.mark.slow  # compiles two models of pairs
@pytest.mark.parametrize("packing", ["sentence_pair_nsp", "sentence_pair_sop"])
def test_pairs_of_sentences_are_learnt_the_same_on_two_devices(packing, tiny_gin, tmp_path):
    corpus = prepare_small_corpus(tmp_path, packing=packing, sequence_length=32)
    changes = (f"data='{corpus}'", "steps=6", "eval_every=6", "encoder.max_length=32")
    trainer_process.train(tiny_gin, tmp_path / "one", *changes)
    finished = trainer_process.train(tiny_gin, tmp_path / "two", *changes, "devices=2")
    assert "global 16 = 2 replicas" in finished.output
    assert_same_losses(tmp_path / "two", tmp_path / "one", steps=6, evaluations=1)
    evaluated = trainer_process.metrics(tmp_path / "two", "eval")[6]
    assert 0 <= evaluated["sentence_pair_accuracy"] <= 1
    parts = evaluated["masked_language_model_loss"] + evaluated["sentence_pair_loss"]
    assert evaluated["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.slow  # two processes that start one after another's compilation
def test_losses_of_two_processes_equal_one(tiny_gin, trained_run, tmp_path):
    arguments = ["-m", "launch.local", "--processes", "2", "--gin", tiny_gin, "--run_dir", tmp_path / "run"]
    finished = trainer_process.run_python(*map(str, arguments), "--gin_param", "devices='all'")
    assert finished.code == 0, finished.text
    assert "global 16 = 2 replicas x 2 accumulation x 4 microbatch" in finished.output
    assert "strategy multi_worker, 2 replicas" in finished.output
    assert_same_losses(tmp_path / "run", trained_run)
    # What is looked at later needs neither the processes nor a word about them.
    looked = trainer_process.train([], tmp_path / "run", others=("--mode", "replay", "--step", "13"))
    assert "replaying step 13 from step 10" in looked.output


def process_of_worker(number, run_dir):
    """Returns the process number of a worker of a run on this machine."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            words = (entry / "cmdline").read_bytes().split(b"\0")
            cluster = f'"index": {number}'.encode()
            is_trainer = b"trainer" in words and str(run_dir).encode() in words
            if is_trainer and cluster in (entry / "environ").read_bytes():
                return int(entry.name)
    raise AssertionError(f"no worker {number} of {run_dir}")


@pytest.mark.slow  # two processes that start one after another's compilation
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds processes in /proc")
def test_a_process_that_is_asked_to_stop_stops_all_at_the_same_step(tiny_gin, tmp_path):
    run_dir = tmp_path / "run"
    options = ("--processes", "2", "--max_restarts", "0", "--gin", tiny_gin, "--run_dir", run_dir)
    changes = ("--gin_param", "devices='all'", "--gin_param", "steps=100000", "--gin_param", "checkpoint_every=50000")
    with trainer_process.Process("-m", "launch.local", *map(str, options), *changes) as process:
        process.wait_until(lambda: trainer_process.last_step(run_dir) >= 3, "the third step")
        os.kill(process_of_worker(1, run_dir), signal.SIGTERM)
        finished = process.finish()
    assert finished.code == 75, finished.text
    (step,) = trainer_process.committed_steps(run_dir)
    said = re.findall(r"the run is saved at step (\d+) of 100000", finished.text)
    assert len(said) == 2 and set(said) == {str(step)}, finished.text
    assert trainer_process.last_step(run_dir) == step


@pytest.mark.slow  # compiles for another topology
def test_a_run_goes_on_with_the_same_losses_on_another_topology(tiny_gin, trained_run, tmp_path):
    # What a run that was stopped at step 10 has: the files of the reference without what came later.
    shutil.copytree(trained_run, tmp_path / "run")
    for step in (15, 20):
        shutil.rmtree(trainer_process.checkpoint_path(tmp_path / "run", step))
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(records[:11]))  # ten steps and an evaluation
    assert trainer_process.last_step(tmp_path / "run") == 10

    finished = trainer_process.train(tiny_gin, tmp_path / "run", "devices=2", "microbatch=2")
    assert "resumed at step 10 of 20" in finished.output
    assert "global 16 = 2 replicas x 4 accumulation x 2 microbatch" in finished.output
    assert_same_losses(tmp_path / "run", trained_run)
