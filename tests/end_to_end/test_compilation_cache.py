"""What XLA has compiled is compiled once: also for a run that goes on."""

import os
import shutil

import pytest
import trainer_process


@pytest.mark.slow  # compiles a run's programs into a cache of its own
def test_a_run_that_goes_on_compiles_nothing(tiny_gin, tmp_path):
    cache = str(tmp_path / "cache")

    def programs():
        return {name for _, _, names in os.walk(os.path.join(cache, "bert-trainer", "xla")) for name in names}

    run_dir = tmp_path / "run"
    trainer_process.train(tiny_gin, run_dir, XDG_CACHE_HOME=cache)
    compiled = programs()
    assert len(compiled) >= 2  # a step and an evaluation
    for step in (15, 20):
        shutil.rmtree(trainer_process.checkpoint_path(run_dir, step))
    finished = trainer_process.train(tiny_gin, run_dir, XDG_CACHE_HOME=cache)
    assert "resumed at step 10 of 20" in finished.output
    assert programs() == compiled
