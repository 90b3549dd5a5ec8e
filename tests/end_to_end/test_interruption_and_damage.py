"""Being stopped, started twice, and finding damaged checkpoints."""

import os
import shutil
import signal

import pytest
import trainer_process

MANY_STEPS = ("steps=1000000", "checkpoint_every=1000000", "eval_every=None")


def start(tiny_gin, run_dir):
    return trainer_process.Process(*trainer_process.trainer_arguments(tiny_gin, run_dir, *MANY_STEPS))


def trains_beyond(step, run_dir):
    return lambda: trainer_process.last_step(run_dir) > step


def assert_stopped_and_saved(finished, run_dir, reason):
    """Checks what a stopped run leaves behind; returns its step."""
    assert finished.code == 75, finished.text
    assert "Traceback" not in finished.text
    assert reason in finished.errors
    status = trainer_process.status(run_dir)
    assert status["state"] == "preempted"
    assert status["step"] == trainer_process.committed_steps(run_dir)[-1] == trainer_process.last_step(run_dir)
    assert f"saved at step {status['step']} of 1000000" in finished.errors
    return status["step"]


@pytest.mark.slow  # three processes, one after another
def test_a_run_asked_to_stop_saves_and_resumes_and_admits_no_second_one(tiny_gin, tmp_path):
    run_dir = tmp_path / "run"
    with start(tiny_gin, run_dir) as process:
        process.wait_until(trains_beyond(3, run_dir), "step 4")
        process.send(signal.SIGTERM)
        step = assert_stopped_and_saved(process.finish(), run_dir, "SIGTERM received")
    assert step >= 4
    with start(tiny_gin, run_dir) as process:
        process.wait_until(trains_beyond(step, run_dir), "the first step after resuming")
        with start(tiny_gin, run_dir) as second:
            refused = second.finish()
        assert refused.code == 2
        assert f"process {process.pid}" in refused.errors
        assert "is in use" in refused.errors and "Traceback" not in refused.text
        process.send(signal.SIGINT)
        finished = process.finish()
    assert f"resumed at step {step} of 1000000" in finished.output
    assert assert_stopped_and_saved(finished, run_dir, "Ctrl-C") > step
    assert sorted(trainer_process.metrics(run_dir)) == list(range(1, trainer_process.last_step(run_dir) + 1))


def test_damaged_checkpoints_are_passed_over_for_the_one_before(tiny_gin, trained_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained_run, run_dir)
    newest = os.path.join(trainer_process.checkpoint_path(run_dir, 20), "weights.data-00000-of-00001")
    with open(newest, "r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 4]))
    os.remove(os.path.join(trainer_process.checkpoint_path(run_dir, 15), "weights.index"))

    finished = trainer_process.train(tiny_gin, run_dir)
    warnings = [line for line in finished.output.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 2
    assert "step_00000020 is damaged: weights.data-00000-of-00001 has CRC-32C" in warnings[0]
    assert "step_00000015 is damaged: weights.index is missing" in warnings[1]
    assert "resumed at step 10 of 20" in finished.output
    kept = sorted(name[:22] for name in os.listdir(run_dir / "checkpoints") if name.startswith("damaged"))
    assert kept == ["damaged_step_00000015-", "damaged_step_00000020-"]
    trainer_process.assert_same_bits(
        trainer_process.checkpoint_values(run_dir, 20), trainer_process.checkpoint_values(trained_run, 20)
    )
    assert trainer_process.metrics(run_dir) == trainer_process.metrics(trained_run)


def test_another_configuration_in_the_same_run_directory_is_refused_with_the_difference(tiny_gin, trained_run):
    before = trainer_process.metrics(trained_run)
    finished = trainer_process.train(tiny_gin, trained_run, "learning_rate=1e-3", "log_every=7", code=2)
    assert "was started with another configuration" in finished.errors
    assert "linear_schedule.peak" in finished.errors
    assert "0.005" in finished.errors and "0.001" in finished.errors
    assert "log_every" not in finished.errors  # that one may change
    assert "Traceback" not in finished.text
    assert trainer_process.metrics(trained_run) == before


def test_a_misspelt_name_is_refused_with_the_nearest(tiny_gin, tmp_path):
    finished = trainer_process.train(tiny_gin, tmp_path / "run", "global_bach=4", code=2)
    assert '"global_bach". Did you mean "global_batch"?' in finished.errors
    assert "Traceback" not in finished.text
    assert not (tmp_path / "run").exists()


def test_missing_data_is_refused_with_its_name(tiny_gin, tmp_path):
    missing = tmp_path / "nowhere"
    finished = trainer_process.train(tiny_gin, tmp_path / "run", f"data='{missing}'", code=2)
    assert str(missing) in finished.errors
    assert "Traceback" not in finished.text
