"""Options of fine-tuning on the command line: in one small run, from the gin lines of the guide to `--best`."""

import json
import re

import numpy as np
import pytest
import trainer_process

OPTIONS = (
    "run.adversarial = @fast_gradient()",
    "fast_gradient.epsilon = 0.1",
    "run.frozen = ['position_embeddings', 'layer_0/']",
    "run.best_metric = 'accuracy'",
    "run.best_metric_goal = 'min'",  # that of the first evaluations, before anything is learnt
    "run.early_stopping_patience = 2",
    "eval_every = 2",
    "checkpoint_every = 5",
    "steps = 60",
    "run.keep_checkpoints = 1",
)


@pytest.fixture(scope="module")
def stopped_run(tiny_gin, tmp_path_factory):
    """A run with all of them that finished early, and what it printed."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return folder, trainer_process.train(tiny_gin, folder, *OPTIONS)


def test_the_run_ends_early_and_keeps_its_best_checkpoint(stopped_run):
    folder, finished = stopped_run
    evaluations = {step: r["accuracy"] for step, r in trainer_process.metrics(folder, "eval").items()}
    best = min(evaluations, key=evaluations.get)
    last = max(evaluations)
    assert last == best + 4 < 60
    assert f"finished early at step {last} of 60: accuracy has not improved in 2 evaluations" in finished.output
    assert trainer_process.committed_steps(folder) == [best, last]
    assert trainer_process.status(folder)["state"] == "finished"
    assert json.loads((folder / "best.json").read_text())["step"] == best
    assert set(trainer_process.metrics(folder)[1]) >= {"loss", "clean_loss", "embedding_gradient_norm"}


@pytest.mark.slow  # two processes
def test_two_processes_end_at_the_same_step_with_the_same_losses(tiny_gin, stopped_run, tmp_path):
    parameters = [part for text in (*OPTIONS, "devices='all'") for part in ("--gin_param", text)]
    options = ("--processes", "2", "--max_restarts", "0", "--gin", tiny_gin, "--run_dir", tmp_path / "run")
    with trainer_process.Process("-m", "launch.local", *map(str, options), *parameters) as process:
        finished = process.finish()
    assert finished.code == 0, finished.text
    assert trainer_process.committed_steps(tmp_path / "run") == trainer_process.committed_steps(stopped_run[0])
    assert trainer_process.losses(tmp_path / "run") == pytest.approx(trainer_process.losses(stopped_run[0]), rel=1e-4)


def test_frozen_parameters_are_in_every_checkpoint_as_they_were(stopped_run):
    folder, _ = stopped_run
    first, last = (trainer_process.checkpoint_values(folder, s) for s in trainer_process.committed_steps(folder))
    weights = {name: value for name, value in first.items() if name.startswith("weights/")}
    same = {name for name, value in weights.items() if np.array_equal(value, last[name])}
    frozen = {name for name in weights if "position_embeddings" in name or "layer_0/" in name}
    assert len(frozen) > 8 and same >= frozen
    assert not any("layer_0/" in name for name in first if name.startswith("optimizer/"))
    assert any("layer_1/" in name for name in weights.keys() - same)


def test_a_run_that_finished_early_has_nothing_to_do(tiny_gin, stopped_run):
    folder, _ = stopped_run
    again = trainer_process.train(tiny_gin, folder, *OPTIONS)
    assert "nothing to do: finished early at step" in again.output
    assert trainer_process.status(folder)["state"] == "finished"


def test_evaluation_of_the_best_checkpoint_gives_what_training_wrote_down(stopped_run):
    folder, _ = stopped_run
    best = json.loads((folder / "best.json").read_text())
    finished = trainer_process.train([], folder, others=("--mode", "evaluate", "--best"))
    assert f"evaluation at step {best['step']}" in finished.output
    shown = dict(re.findall(r"^  (\w+) (\S+)$", finished.output, re.MULTILINE))
    assert float(shown["accuracy"]) == pytest.approx(best["value"], rel=1e-5)


@pytest.mark.slow  # looks into every example by itself
def test_a_replayed_step_has_the_losses_of_the_first_time(stopped_run):
    folder, _ = stopped_run
    step = trainer_process.committed_steps(folder)[0] + 1
    finished = trainer_process.train([], folder, others=("--mode", "replay", "--step", step))
    rows = dict(re.findall(r"^│ (loss|clean_loss|gradient_norm) +│ (.*) │$", finished.output, re.MULTILINE))
    assert set(rows) == {"loss", "clean_loss", "gradient_norm"}
    for name, row in rows.items():
        now, before = (text.strip() for text in row.split("│"))
        assert now == before == f"{trainer_process.metrics(folder)[step][name]:.9g}"


def test_a_misspelt_metric_is_refused_before_training(tiny_gin, tmp_path):
    finished = trainer_process.train(tiny_gin, tmp_path / "run", "run.best_metric = 'acuracy'", code=2)
    assert "Did you mean 'accuracy'?" in finished.text
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_best_is_refused_where_there_is_none_and_where_it_means_nothing(tiny_gin, trained_run, tmp_path):
    finished = trainer_process.train([], trained_run, others=("--mode", "predict", "--best", "a [MASK]."), code=2)
    assert "has no best checkpoint" in finished.text and "run.best_metric" in finished.text
    finished = trainer_process.train(tiny_gin, tmp_path / "run", others=("--best",), code=2)
    assert "--best is for --mode evaluate, predict and export, not train" in finished.text
