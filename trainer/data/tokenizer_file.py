"""Tokenizers that are not WordPiece: whatever Hugging Face's `tokenizer.json` describes (byte-level BPE, Unigram, ...).

RoBERTa, ModernBERT and ALBERT come with one. The library that reads it is `tokenizers`; this module gives it the shape of
`trainer.data.tokenization.Tokenizer`.
"""

import dataclasses
import functools
import hashlib

import numpy as np

from trainer import storage
from trainer.data.tokenization import Tokenizer
from trainer.data.vocabulary import MASK, Vocabulary, file_content, load_vocabulary
from trainer.errors import InputError

FILE_NAME = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class FileVocabulary(Vocabulary):
    """The pieces of a `tokenizer.json`, and which of them are special.

    Args:
        pieces: tuple of strings; a piece's id is its place.
        sha256: SHA-256 of the file's content.
        special: `{"classification" | "separator" | "mask" | "padding" | "unknown": id}`; None where there is none.
        content: the file's content, bytes.
        path: of the file.
    """

    special: dict = dataclasses.field(default_factory=dict)
    content: bytes = b""
    path: str = ""

    def _special(self, role):
        number = self.special.get(role)
        if number is None:
            raise InputError(f"{FILE_NAME} has no {role} token")
        return number

    @property
    def padding_id(self):
        """Id of what rows are filled up with."""
        return self._special("padding")

    @property
    def unknown_id(self):
        """Id of what stands for the unknown."""
        return self._special("unknown")

    @property
    def classification_id(self):
        """Id of the token that begins a row."""
        return self._special("classification")

    @property
    def separator_id(self):
        """Id of the token that ends a text."""
        return self._special("separator")

    @property
    def mask_id(self):
        """Id of the token that stands for a masked one."""
        return self._special("mask")

    def text(self, ids):
        """Returns the text that ids stand for."""
        return _library_tokenizer(self.content).decode(list(map(int, ids)), skip_special_tokens=False)


class FileTokenizer:
    """Text to ids by a `tokenizer.json`.

    Args:
        vocabulary: `FileVocabulary`.
    """

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary
        self._tokenizer = _library_tokenizer(vocabulary.content)
        # RoBERTa puts two between the texts of a pair.
        self.separators_in_pairs = self._tokenizer.num_special_tokens_to_add(True) - 2

    def tokenize(self, lines):
        """Splits texts into pieces, without special tokens.

        Args:
            lines: list of strings.

        Returns:
            ids: `[tokens]` int32, of all texts one after the other.
            lengths: `[lines]` int64: number of tokens of each text.
        """
        encoded = self._tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
        lengths = np.array([len(each) for each in encoded], np.int64)
        ids = np.fromiter((number for each in encoded for number in each.ids), np.int32, int(lengths.sum()))
        return ids, lengths

    def ids(self, text):
        """Returns the ids of one text as a list."""
        return self.tokenize([text])[0].tolist()

    def ids_with_masks(self, text):
        """Returns the ids of a text in which `[MASK]` stands for the special token, as a list."""
        result = []
        for number, part in enumerate(text.split(MASK)):
            result += [self.vocabulary.mask_id] if number else []
            result += self.ids(part) if part else []
        return result


@functools.lru_cache(maxsize=4)
def _library_tokenizer(content):
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise InputError(f"reading {FILE_NAME} takes the library of that name: pip install tokenizers") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain exceptions
        raise InputError(f"{FILE_NAME} is damaged, or of a later version: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_file_vocabulary(path):
    """Reads a `tokenizer.json`.

    Args:
        path: of the file, local or `gs://`.

    Returns:
        `FileVocabulary`.

    Raises:
        InputError: if it is missing, damaged, or puts other things around a text than one token before and one behind.
    """
    if not storage.exists(path):
        raise InputError(f"there is no tokenizer file {path}")
    content = storage.read_bytes(path)
    tokenizer = _library_tokenizer(content)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [""] * (max(ids.values()) + 1)
    for piece, number in ids.items():
        pieces[number] = piece
    around = tokenizer.encode("", add_special_tokens=True).ids
    if len(around) != 2 or tokenizer.num_special_tokens_to_add(True) not in (3, 4):
        raise InputError(
            f"{path} puts {len(around)} tokens around a text; one before and one behind, as BERT and RoBERTa have it, is "
            "what is supported"
        )
    special = {"classification": around[0], "separator": around[1]}
    for role, names in (
        ("mask", ("[MASK]", "<mask>")),
        ("padding", ("[PAD]", "<pad>")),
        ("unknown", ("[UNK]", "<unk>")),
    ):
        special[role] = next((ids[name] for name in names if name in ids), None)
    return FileVocabulary(tuple(pieces), hashlib.sha256(content).hexdigest(), special, content, str(path))


def open_vocabulary(path):
    """Reads `vocab.txt`, or a `tokenizer.json`, by its name."""
    return load_file_vocabulary(path) if str(path).endswith(".json") else load_vocabulary(path)


def tokenizer_of(vocabulary, lower_case):
    """Returns the tokenizer of a vocabulary that `open_vocabulary` read; a `tokenizer.json` knows its case itself."""
    if isinstance(vocabulary, FileVocabulary):
        return FileTokenizer(vocabulary)
    return Tokenizer(vocabulary, lower_case)


def vocabulary_file(vocabulary):
    """Returns `{name: content}` of the file that holds a vocabulary that `open_vocabulary` read."""
    if isinstance(vocabulary, FileVocabulary):
        return {FILE_NAME: vocabulary.content}
    return {"vocab.txt": file_content(vocabulary.pieces)}
