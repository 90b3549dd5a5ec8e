"""A small corpus of random documents, some of them nearly the same, for tests of data preparation."""

import json
import os

import numpy as np

from trainer.data.preparation import PreparationSettings
from trainer.data.vocabulary import SPECIAL_TOKENS, make_vocabulary

WORDS = ["alpha", "beta", "gamma", "delta", "omega", ".", ",", "un", "##seen"]


def corpus(folder, files=4, documents=60):
    """Writes a corpus of random documents, and its vocabulary; returns the settings for it."""
    rng = np.random.default_rng(11)
    folder.mkdir()
    for number in range(files):
        texts = [
            "\n".join(" ".join(rng.choice(WORDS[:6], rng.integers(2, 30))) + "." for _ in range(rng.integers(1, 6)))
            for _ in range(documents)
        ]
        (folder / f"{number}.txt").write_text("\n\n".join(texts))
    make_vocabulary([*SPECIAL_TOKENS, *WORDS]).save(folder / "vocab.txt.pieces")
    inputs = (f"{folder}/*.txt",)
    return PreparationSettings(
        inputs=inputs, vocabulary=str(folder / "vocab.txt.pieces"), sequence_length=24, num_shards=3, held_out=0.1
    )


def files_of(folder):
    """Name to content of what decides training."""
    content = {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder)) if ".tfrecord" in name}
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("seconds", "tokens_per_second", "workers", "runner"):
        manifest["summary"].pop(name, None)
    return content | {"manifest": manifest}


def add_near_duplicates(folder, copies=20):
    """Adds documents to a corpus, each in two forms that differ in the case of a word, and in a word."""
    rng = np.random.default_rng(12)
    texts = []
    for number in range(copies):
        words = [WORDS[k] for k in rng.integers(0, 5, 150)]
        texts += [" ".join(words), " ".join([words[0].upper(), *words[1:]]), " ".join([*words[:-1], f"unseen{number}"])]
    (folder / "near.txt").write_text("\n\n".join(texts))


def small_units(monkeypatch):
    """Cuts corpora of a few kilobytes into many units."""
    monkeypatch.setattr("trainer.data.documents._SMALLEST_UNIT_BYTES", 5000)
