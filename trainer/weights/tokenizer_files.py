"""Tokenizers beside weights: read from the files there may be, written as Hugging Face's tokenizers and ours want them."""

import json
import re

from trainer import storage
from trainer.data.vocabulary import (
    CLASSIFICATION,
    MASK,
    PADDING,
    SEPARATOR,
    SPECIAL_TOKENS,
    SUFFIX_MARK,
    UNKNOWN,
    file_content,
)
from trainer.errors import InputError

VOCABULARY_NAME = "vocab.txt"
_SETTINGS_NAME, _WHOLE_NAME, _ADDED_NAME = "tokenizer_config.json", "tokenizer.json", "added_tokens.json"
_CONFIG_NAME = "config.json"  # of the model; it may name the tokenizer's class
# What tokenizers of other kinds consist of.
_FILES = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json$|(vocab|merges)\.txt$|.*\.codes$"
    r"|(spiece|sentencepiece[\w.]*)\.model$"
)
# Classes that split texts as BERT's does.
_BERT_CLASSES = re.compile(
    r"((Bert|DistilBert|Electra|MobileBert|ConvBert)Tokenizer(Fast)?|PreTrainedTokenizerFast|TokenizersBackend)$"
)
_SPECIAL = {
    "pad_token": PADDING,
    "unk_token": UNKNOWN,
    "cls_token": CLASSIFICATION,
    "sep_token": SEPARATOR,
    "mask_token": MASK,
}


def read_json(path):
    """Returns the content of a JSON file, a dict.

    Raises:
        InputError: if it is damaged, or holds anything else.
    """
    try:
        content = json.loads(storage.read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold an object {{...}}, it holds {json.dumps(content)[:60]}")
    return content


def read_pieces(path):
    """Returns the pieces of a vocabulary file, one a line; None if there is no such file."""
    if not storage.exists(path):
        return None
    lines = storage.read_text(path).split("\n")
    return tuple(line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines))


def other_tokenizer_files(folder):
    """Returns the paths of the files in a folder that tokenizers of other kinds than WordPiece consist of."""
    return tuple(storage.join(folder, name) for name in storage.listing(folder) if _FILES.match(name))


def read_tokenizer(folder, size):
    """Returns the fields of a `ModelDescription` that are about the tokenizer: `pieces`, `lower_case`, `tokenizer_files`.

    Pieces are there only if texts are split as BERT does it; of another tokenizer all files travel along.

    Args:
        folder: with weights and tokenizer.
        size: number of tokens of the weights.

    Raises:
        InputError: if a file is damaged.
    """

    def content(name):
        path = storage.join(folder, name)
        return read_json(path) if storage.exists(path) else {}

    settings, whole = content(_SETTINGS_NAME), content(_WHOLE_NAME)
    settings = {"tokenizer_class": content(_CONFIG_NAME).get("tokenizer_class")} | settings
    pieces = _pieces(folder, whole, content(_ADDED_NAME), size)
    normalizer = whole.get("normalizer") or {}
    lower_case = settings.get("do_lower_case", normalizer.get("lowercase"))
    if lower_case is None and pieces is not None:
        lower_case = looks_lower_cased(pieces)
    if not _is_berts(settings, whole, pieces, lower_case):
        return {"tokenizer_files": other_tokenizer_files(folder)}
    return {"pieces": pieces, "lower_case": lower_case}


def _pieces(folder, whole, added, size):
    """Returns the pieces of `vocab.txt` or a WordPiece `tokenizer.json`, with those that were added; None without any."""
    pieces = read_pieces(storage.join(folder, VOCABULARY_NAME))
    model = whole.get("model") or {}
    if pieces is None and model.get("type") == "WordPiece":
        pieces = tuple(sorted(model["vocab"], key=model["vocab"].get))
        if [model["vocab"][piece] for piece in pieces] != list(range(len(pieces))):
            raise InputError(f"{storage.join(folder, _WHOLE_NAME)} is damaged: its ids are not 0, 1, 2, ...")
    if pieces is None:
        return None
    while len(pieces) > size and not pieces[-1]:  # empty lines at the end of vocab.txt
        pieces = pieces[:-1]
    added = {token["content"]: token["id"] for token in whole.get("added_tokens") or ()} | added
    for piece in sorted(added, key=added.get):
        if added[piece] == len(pieces) < size:  # a tokenizer may know more than the model
            pieces = (*pieces, piece)
    return pieces


def _is_berts(settings, whole, pieces, lower_case):
    """Returns whether a tokenizer does as BERT's.

    Args:
        settings, whole: contents of `tokenizer_config.json` and `tokenizer.json`, empty where there is none.
        pieces: of its vocabulary, or None.
        lower_case: whether it lower-cases.
    """
    if pieces is None or not set(SPECIAL_TOKENS) <= set(pieces):
        return False
    name, model, normalizer = settings.get("tokenizer_class"), whole.get("model") or {}, whole.get("normalizer") or {}
    strips = settings.get("strip_accents", normalizer.get("strip_accents"))
    sections = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
    return (
        (name is None or (isinstance(name, str) and _BERT_CLASSES.match(name) is not None))
        and settings.get("do_basic_tokenize", True)
        and strips in (None, lower_case)
        and settings.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True))
        and normalizer.get("clean_text", True)
        and model.get("type", "WordPiece") == "WordPiece"
        and model.get("continuing_subword_prefix", SUFFIX_MARK) == SUFFIX_MARK
        and all((whole[part] or {}).get("type") == kind for part, kind in sections.items() if part in whole)
    )


def looks_lower_cased(pieces):
    """Returns whether a vocabulary is of lower-cased text: hardly any piece has a capital letter."""
    with_capitals = sum(piece != piece.lower() for piece in pieces if piece not in SPECIAL_TOKENS)
    return with_capitals < 0.01 * len(pieces)


def write_vocabulary(description, folder):
    """Writes `vocab.txt`, where there are pieces, and the files of another tokenizer, where there is one.

    Args:
        description: `ModelDescription`.
        folder: to write into.
    """
    if description.pieces is not None:
        storage.write_bytes(storage.join(folder, VOCABULARY_NAME), file_content(description.pieces))
    for path in description.tokenizer_files:
        target = storage.join(folder, path.rpartition("/")[2])
        if target != path:
            storage.copy_file(path, target)


def write_tokenizer(description, folder):
    """As `write_vocabulary`, with the settings by which Hugging Face's tokenizers do as the model needs."""
    write_vocabulary(description, folder)
    if description.pieces is None:
        return
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": description.lower_case is not False,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": description.encoder.longest_row,
    }
    settings |= {role: piece for role, piece in _SPECIAL.items() if piece in description.pieces}
    storage.write_json(storage.join(folder, _SETTINGS_NAME), settings)
