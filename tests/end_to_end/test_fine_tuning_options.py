"""Options of fine-tuning on the command line: in one small run, from the gin lines of the guide to `--best`."""

import csv
import json
import re

import numpy as np
import pytest
import trainer_process

from trainer.data.vocabulary import SPECIAL_TOKENS, make_vocabulary
from trainer.main import main

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


CLASSIFIER = (
    "steps=2", "eval_every=2", "global_batch=4", "encoder.num_layers=1", "encoder.hidden_size=32",
    "classification.class_weights='balanced'", "classification_data.file_format='tsv'",
)  # fmt: skip


def call(run_dir, *parameters, files=(), others=(), code=0):
    """Runs the command line in this process."""
    assert main(trainer_process.trainer_arguments(list(files), run_dir, *parameters, others=others)[2:]) == code


def test_a_classifier_needs_nothing_but_its_run_directory_and_refuses_other_data(tmp_path, capsys):
    files = {name: tmp_path / f"{name}.txt" for name in ("data", "held_out", "vocabulary", "other")}
    rows = {"data": ["good 1\tc", "good 2\ta", "bad 3\ta", "bad 4\tb"] * 2, "held_out": ["bad 1\ta", "good\tc"]}
    rows["other"] = [row.replace("\ta", "\td") for row in rows["data"]]
    for name, lines in rows.items():
        files[name].write_text("\n".join(["text\tlabel", *lines]))
    make_vocabulary([*SPECIAL_TOKENS, "good", "bad", *"1234"]).save(files["vocabulary"])
    paths = [f"{name}='{files[name]}'" for name in ("data", "held_out", "vocabulary")]
    run_dir = tmp_path / "run"
    call(run_dir, *CLASSIFIER, *paths, files=["train_classification.gin", "hardware/laptop.gin"])

    content = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    call(run_dir, f"data='{files['other']}'", "held_out=None", code=2)
    assert "was started on other data than this" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == content

    for name in ("data", "vocabulary", "other"):
        files[name].unlink()
    call(run_dir, others=("--mode", "evaluate"))
    shown = dict(re.findall(r"^  (\w+) (\S+)$", capsys.readouterr().out, re.MULTILINE))
    (logged,) = trainer_process.metrics(run_dir, "eval").values()
    for name in ("loss", "accuracy", "f1_macro"):
        assert float(shown[name]) == pytest.approx(logged[name], rel=1e-5)

    answers = tmp_path / "answers.csv"
    call(run_dir, others=("--mode", "predict", "--input", files["held_out"], "--output", answers))
    assert "held_out.txt is read as tsv" in capsys.readouterr().err
    header, *table = csv.reader(answers.read_text().splitlines())
    assert header == ["text", "label", "probability_a", "probability_b", "probability_c"]
    assert [row[0] for row in table] == ["bad 1", "good"]
