"""Tokenizers from `tokenizer.json`: the ids of the library, and of Hugging Face's own classes around it."""

import json
import pathlib

import numpy as np
import pytest

from trainer.data.labelled_rows import encode_texts
from trainer.data.tokenizer_file import FileTokenizer, load_file_vocabulary, open_vocabulary, tokenizer_of
from trainer.data.vocabulary import Vocabulary, make_vocabulary
from trainer.errors import InputError

TEXTS = [
    "The cat sat on the mat.",
    "",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Deich!",
    "a b  c\td",
    "🙂 你好",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A byte-level BPE tokenizer as RoBERTa has it, learnt from a few sentences."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(TEXTS * 3, vocab_size=320, min_frequency=1, special_tokens=special)
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    name = tmp_path_factory.mktemp("roberta") / "tokenizer.json"
    tokenizer.save(str(name))
    return str(name)


def test_special_tokens_are_found_by_what_they_do(path):
    vocabulary = open_vocabulary(path)
    ids = (vocabulary.classification_id, vocabulary.separator_id, vocabulary.padding_id, vocabulary.unknown_id)
    assert (*ids, vocabulary.mask_id) == (0, 2, 1, 3, 4)
    assert vocabulary.pieces[:5] == ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def test_texts_become_the_ids_of_the_library(path):
    import tokenizers

    reference = tokenizers.Tokenizer.from_file(path)
    tokenizer = FileTokenizer(load_file_vocabulary(path))
    ids, lengths = tokenizer.tokenize(TEXTS)
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    assert [part.tolist() for part in parts] == [reference.encode(t, add_special_tokens=False).ids for t in TEXTS]
    assert tokenizer.ids_with_masks("The [MASK] sat") == [*tokenizer.ids("The "), 4, *tokenizer.ids(" sat")]
    assert tokenizer.vocabulary.text(tokenizer.ids(TEXTS[2])) == TEXTS[2]


def test_rows_and_pairs_are_those_of_hugging_face(path):
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=path, pad_token="<pad>")
    tokenizer = FileTokenizer(load_file_vocabulary(path))
    for second in (None, TEXTS[::-1]):
        for max_length in (8, 9, 64):
            rows = encode_texts(tokenizer, TEXTS, second, max_length=max_length)
            theirs = reference(TEXTS, second, truncation="longest_first", max_length=max_length)["input_ids"]
            assert [ids[:n].tolist() for ids, n in zip(rows.token_ids, rows.num_tokens, strict=True)] == theirs


def test_word_pieces_keep_their_own_tokenizer(tmp_path):
    vocabulary = make_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    vocabulary.save(str(tmp_path / "vocab.txt"))
    read = open_vocabulary(str(tmp_path / "vocab.txt"))
    assert type(read) is Vocabulary
    assert tokenizer_of(read, lower_case=True).ids("A") == [5]


def test_files_that_are_none_are_refused(tmp_path, path):
    with pytest.raises(InputError, match="no tokenizer file"):
        load_file_vocabulary(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        load_file_vocabulary(str(tmp_path / "tokenizer.json"))
    content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="puts 0 tokens around"):
        load_file_vocabulary(str(tmp_path / "tokenizer.json"))
