"""Every gin file that is shipped parses, says what it is said to say, and runs."""

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import trainer_process

from trainer.config import load_config
from trainer.configurables import CONFIGURABLES
from trainer.data.manifests import load_manifest
from trainer.data.records import decode_rows
from trainer.data.vocabulary import SPECIAL_TOKENS
from trainer.main import main

GIN = pathlib.Path(trainer_process.ROOT) / "gin"
FILES = sorted(str(path.relative_to(GIN)) for path in GIN.rglob("*.gin"))

# Layers, hidden size, heads and width of the feed-forward part, as published (arXiv 1810.04805 and 1908.08962).
SIZES = {
    "tiny": (2, 128, 2, 512),
    "mini": (4, 256, 4, 1024),
    "small": (4, 512, 8, 2048),
    "medium": (8, 512, 8, 2048),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}

# A step of these takes a laptop minutes or more memory than it has: fewer layers, each in its full size.
FEWER_LAYERS = {"base": 1, "large": 1, "medium": 2}


def chain(name):
    """The gin files of a run that has a file in it."""
    return ["pretrain.gin"] if name == "pretrain.gin" else ["pretrain.gin", name]


def test_the_table_of_sizes_is_complete():
    assert {f"models/{name}.gin" for name in SIZES} == {name for name in FILES if name.startswith("models/")}


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_gin_file_parses_and_says_first_what_it_is_for(name):
    files = [name] if name == "quickstart.gin" else chain(name)
    config = load_config(files, ["data='anywhere'"], configurables=CONFIGURABLES)
    run = config.call("run")
    assert run.global_batch > 0 and run.steps > 0
    replaced = ("adamw.", "linear_schedule.") if name.startswith("optimizers/") else ()
    assert [each for each in config.unused if not each.startswith(replaced)] == []
    text = (GIN / name).read_text()
    assert text.startswith("# ") and "python -m trainer --gin" in text.partition("\n\n")[0]


@pytest.mark.parametrize("size", SIZES)
def test_a_model_has_the_published_size(size):
    files = ["pretrain.gin", f"models/{size}.gin"]
    run = load_config(files, ["data='anywhere'"], configurables=CONFIGURABLES).call("run")
    encoder = run.task.encoder
    assert (encoder.num_layers, encoder.hidden_size, encoder.num_heads, encoder.feed_forward_size) == SIZES[size]


def run_one_step(files, tmp_path, small_corpus, *parameters):
    """Runs one step with the command line in this process, which has logical CPU devices already."""
    run_dir = tmp_path / "run"
    changes = (f"data='{small_corpus}'", "steps=1", "global_batch=2", "eval_every=None")
    code = main(trainer_process.trainer_arguments(files, run_dir, *changes, *parameters)[2:])
    records = trainer_process.metrics(run_dir)
    committed = trainer_process.committed_steps(run_dir)
    shutil.rmtree(run_dir)
    assert code == 0
    assert list(records) == [1] and committed == [1]
    assert records[1]["skipped"] == 0
    # One batch of random guesses among 185 pieces.
    assert 4.2 < records[1]["loss"] < 6.5


def test_the_quickstart_runs_a_step(tmp_path, small_corpus):
    run_one_step(["quickstart.gin"], tmp_path, small_corpus)


def unigram_loss(data):
    """The loss on held-out rows of a model that knows how frequent tokens are in the training rows, and nothing else."""
    manifest = load_manifest(data)
    counts = {}
    for split in ("train", "held_out"):
        paths = [f"{data}/{shard.name}" for shard in manifest.splits[split]]
        records = np.array([np.frombuffer(r, np.uint8) for r in tf.data.TFRecordDataset(paths).as_numpy_iterator()])
        ids = decode_rows(manifest.row_format, records).token_ids.reshape(-1)
        counts[split] = np.bincount(ids, minlength=manifest.vocabulary_size).astype(float)
        counts[split][: len(SPECIAL_TOKENS)] = 0  # these are never masked
    probabilities = (counts["train"] + 0.1) / (counts["train"] + 0.1).sum()
    return -(counts["held_out"] * np.log(probabilities)).sum() / counts["held_out"].sum()


@pytest.mark.slow  # prepares the embedded corpus and trains for a minute
def test_the_quickstart_learns_more_than_how_frequent_tokens_are(tmp_path):
    finished = trainer_process.train("quickstart.gin", tmp_path / "run", "steps=600")
    losses = [record["loss"] for record in trainer_process.metrics(tmp_path / "run", "eval").values()]
    assert losses == sorted(losses, reverse=True) and len(losses) == 3
    assert losses[-1] < unigram_loss(str(tmp_path / "run" / "data")) - 0.5, finished.text
    answers = finished.output.partition("the name of the [MASK] to open.")[2].splitlines()[1].split()
    probabilities = [float(word) for word in answers if word.startswith("0.")]
    assert len(probabilities) == 4 and probabilities == sorted(probabilities, reverse=True)


@pytest.mark.slow  # large layers take long to compile
@pytest.mark.parametrize("size", SIZES)
def test_a_model_of_every_size_runs_a_step_on_the_cpu(size, tmp_path, small_corpus):
    fewer = [f"encoder.num_layers={FEWER_LAYERS[size]}"] if size in FEWER_LAYERS else []
    files = ["pretrain.gin", f"models/{size}.gin", "hardware/laptop.gin"]
    run_one_step(files, tmp_path, small_corpus, *fewer)


@pytest.mark.slow  # compiles each
@pytest.mark.parametrize("optimizer", [name for name in FILES if name.startswith("optimizers/")])
def test_an_optimizer_overlay_runs_a_step(optimizer, tmp_path, small_corpus):
    files = ["pretrain.gin", "models/tiny.gin", "hardware/laptop.gin", optimizer]
    run_one_step(files, tmp_path, small_corpus, "encoder.num_layers=1", "encoder.hidden_size=32")


@pytest.mark.slow  # compiles twice; the overlay for laptops is in every run above
@pytest.mark.parametrize("hardware", [name for name in FILES if name.startswith("hardware/") and "laptop" not in name])
def test_a_hardware_overlay_runs_a_step_on_the_cpu(hardware, tmp_path, small_corpus):
    files = ["pretrain.gin", "models/tiny.gin", hardware]
    run_one_step(files, tmp_path, small_corpus, "strategy='cpu'", "devices=1")
