"""What preparation costs: memory that does not grow with the corpus, and a fraction of the time of other tokenizers."""

import json
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers

from trainer.data.preparation import PreparationSettings, prepare
from trainer.data.vocabulary import SPECIAL_TOKENS, load_vocabulary, make_vocabulary

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "en"
SCRIPT = pathlib.Path(__file__).with_name("measure_memory.py")


def write_corpus(folder, megabytes):
    """Writes random words in documents of about a kilobyte; returns the settings that every preparation needs."""
    rng = np.random.default_rng(3)
    words = np.array(sorted({"".join(rng.choice(list("abcdefghij"), 5)) for _ in range(3000)}))
    folder.mkdir()
    make_vocabulary([*SPECIAL_TOKENS, *words]).save(folder / "pieces")
    with open(folder / "corpus.txt", "w") as file:
        for _ in range(megabytes * 1000):
            file.write(" ".join(rng.choice(words, 166)) + "\n\n")
    return {"inputs": [str(folder / "corpus.txt")], "vocabulary": str(folder / "pieces")}


@pytest.mark.slow  # 44 MB of text, by processes that import TensorFlow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"near_duplicates": 0.8, "max_symbol_share": 0.5, "min_words": 3},
        {"packing": "sentence_pair_nsp", "compress": True},
    ],
)
def test_peak_memory_does_not_grow_when_the_corpus_does_tenfold(tmp_path, changes):
    pytest.importorskip("resource")
    peaks = []
    for megabytes in (4, 40):
        settings = write_corpus(tmp_path / f"{megabytes}", megabytes) | changes
        arguments = [sys.executable, SCRIPT, json.dumps(settings), tmp_path / f"out-{megabytes}"]
        ran = subprocess.run(arguments, capture_output=True, text=True, check=True)
        peaks.append(json.loads(ran.stdout))
    for small, large in zip(*peaks, strict=True):  # of the parent, of the worker
        assert large < small * 1.02
        assert large - small < 10  # MB, where the text grew by 36 MB, its tokens by 12 MB and more


def wikitext_in_many_forms(folder, copies):
    """Writes WikiText's articles several times, each time with their lines in another order; returns all lines."""
    text = (SHARED / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    rng, every = random.Random(1), []
    folder.mkdir()
    for number in range(copies):
        rng.shuffle(lines)
        documents = ["\n".join(lines[first : first + 40]) for first in range(0, len(lines), 40)]
        (folder / f"{number}.txt").write_text("\n\n".join(documents), encoding="utf-8")
        every += lines
    return every


@pytest.mark.slow  # 20 MB of text, several times
def test_preparation_with_writing_takes_a_third_of_the_time_that_tokenizers_takes_to_tokenize(tmp_path, monkeypatch):
    if not (SHARED / "wikitext2").exists():
        pytest.skip(f"{SHARED} is absent: it holds WikiText")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    lines = wikitext_in_many_forms(tmp_path / "corpus", 20)
    vocabulary = load_vocabulary(SHARED / "vocab.txt")
    reference = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary.ids, unk_token="[UNK]"))
    reference.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    reference.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    settings = PreparationSettings(inputs=(str(tmp_path / "corpus"),), vocabulary=str(SHARED / "vocab.txt"))

    def rate(tokens_made):
        start = time.process_time()  # of all threads: a busy machine lengthens the wait, not this
        tokens = tokens_made()
        return tokens / (time.process_time() - start)

    def theirs():
        batches = [lines[first : first + 1000] for first in range(0, len(lines) // 5, 1000)]
        return sum(len(each.ids) for batch in batches for each in reference.encode_batch_fast(batch))

    ours, others = [], []
    for number in range(4):
        others.append(rate(theirs))
        ours.append(
            rate(lambda number=number: prepare(settings, tmp_path / str(number), num_workers=0).summary["tokens"])
        )
    print(f"tokens per second of a core: {max(ours):,.0f}, tokenizers {max(others):,.0f}")
    assert max(ours) > 3 * max(others)
