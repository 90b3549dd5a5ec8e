"""One gin file, any hardware, the same run: losses of several devices and processes equal those of one device."""

import shutil

import pytest
import trainer_process


def assert_same_losses(run_dir, expected_dir):
    for kind, count in (("train", 20), ("eval", 2)):
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
