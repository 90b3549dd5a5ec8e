"""Numbers that are not finite end a run, and it says where to look."""

import re

import trainer_process


def test_a_run_whose_numbers_overflow_stops_and_says_how_to_look_into_it(tiny_gin, tmp_path):
    run_dir = tmp_path / "run"
    parameters = ("learning_rate=1e30", "run.max_skipped_steps=3", "eval_every=None")
    finished = trainer_process.train(tiny_gin, run_dir, *parameters, code=70)
    assert "Traceback" not in finished.text
    skipped = [step for step, record in trainer_process.metrics(run_dir).items() if record["skipped"]]
    first, last = skipped[0], skipped[-1]
    assert skipped == list(range(first, first + 4)) and last < 20
    assert re.search(rf"4 steps in a row, up to step {last}, .*not\s+finite", finished.errors)
    assert f"--run_dir {run_dir} --mode replay --step {first}`" in finished.errors
    for step in skipped:
        assert f"step {step}: loss or gradient is not finite; no weight was changed" in finished.output
    norms = {trainer_process.metrics(run_dir)[step]["weight_norm"] for step in skipped}
    assert len(norms) == 1
    status = trainer_process.status(run_dir)
    assert (status["state"], status["step"]) == ("failed", last)
    assert "not finite" in re.sub(r"\s+", " ", status["last_error"])
