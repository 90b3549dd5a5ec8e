"""Which tokenizers are BERT's: their pieces are taken; of all others the files travel along."""

import json

import pytest
from small_weights import PIECES, small_source

from trainer.weights.opening import open_weights
from trainer.weights.pretrained import vocabulary_of
from trainer.weights.writing import FORMATS, write_weights


@pytest.fixture
def folder(tmp_path):
    """A folder of Hugging Face's without a tokenizer; of 14 tokens."""
    write_weights(small_source(), str(tmp_path / "in"), "hugging_face")
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / "in" / name).unlink()
    return tmp_path / "in"


def put(folder, vocabulary=PIECES, settings=None, whole=None):
    """Writes `vocab.txt`, `tokenizer_config.json` and `tokenizer.json`, as far as they are given."""
    if vocabulary is not None:
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary))
    for name, content in (("tokenizer_config.json", settings), ("tokenizer.json", whole)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))


def whole(model=(), **changes):
    """Returns the content of a `tokenizer.json` as BERT's has it, with changes."""
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    sections = {
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "vocab": vocabulary, "continuing_subword_prefix": "##"} | dict(model),
    }
    return sections | changes


@pytest.mark.parametrize(
    ("settings", "content"),
    [
        (None, None),
        ({}, whole()),
        ({"tokenizer_class": "BertTokenizer"}, None),
        ({"tokenizer_class": "DistilBertTokenizerFast", "strip_accents": None}, whole()),
        ({"tokenizer_class": "ElectraTokenizer", "do_lower_case": True, "strip_accents": True}, None),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, whole()),
    ],
)
def test_berts_tokenizer_is_known_by_what_it_does(folder, settings, content):
    for vocabulary in (PIECES, None)[: 1 if content is None else 2]:
        (folder / "vocab.txt").unlink(missing_ok=True)
        put(folder, vocabulary, settings, content)
        description = open_weights(str(folder)).description
        assert (description.pieces, description.lower_case, description.tokenizer_files) == (PIECES, True, ())


@pytest.mark.parametrize(
    ("settings", "content"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}, None),
        ({"tokenizer_class": "PhobertTokenizer"}, None),
        ({"tokenizer_class": "RoFormerTokenizer"}, None),
        ({"tokenizer_class": ["BertTokenizer"]}, None),
        ({"do_basic_tokenize": False}, None),
        ({"tokenize_chinese_chars": False}, None),
        ({"do_lower_case": True, "strip_accents": False}, None),
        ({}, whole({"continuing_subword_prefix": "@@"})),
        ({}, whole({"type": "BPE", "merges": []})),
        ({}, whole(pre_tokenizer={"type": "WhitespaceSplit"})),
        ({}, whole(pre_tokenizer=None)),
        ({}, whole(normalizer={"type": "Lowercase"})),
        ({}, whole(normalizer=None)),
        ({}, whole(normalizer={"type": "BertNormalizer", "clean_text": False, "lowercase": True})),
    ],
)
def test_of_another_tokenizer_all_files_travel_and_no_pieces_are_taken(folder, tmp_path, settings, content):
    put(folder, PIECES, settings, content)
    (folder / "bpe.codes").write_text("x y 1\n")
    files = {name: (folder / name).read_bytes() for name in ("vocab.txt", "bpe.codes", "tokenizer_config.json")}
    for kind in FORMATS:
        write_weights(open_weights(str(folder)), str(tmp_path / kind), kind)
        assert {name: (tmp_path / kind / name).read_bytes() for name in files} == files
        description = open_weights(str(tmp_path / kind)).description
        assert (description.pieces, description.lower_case) == (None, None)
        assert files.keys() <= {path.rpartition("/")[2] for path in description.tokenizer_files}


def test_the_class_of_a_tokenizer_may_stand_in_the_models_configuration(folder):
    put(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "BertJapaneseTokenizer"}))
    assert open_weights(str(folder)).description.pieces is None


def test_a_vocabulary_without_berts_special_tokens_is_not_berts(folder):
    put(folder, ("<pad>", "<unk>", *PIECES[2:]))
    assert open_weights(str(folder)).description.pieces is None


def test_a_tokenizer_that_is_not_berts_is_what_texts_are_split_by(folder):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = vocabulary_of(open_weights(str(folder)).description)
    assert vocabulary.path.endswith("/tokenizer.json") and vocabulary.pieces == PIECES


def test_empty_lines_at_the_end_are_no_pieces(folder):
    put(folder)
    with open(folder / "vocab.txt", "a") as file:
        file.write("\n\r\n")
    assert open_weights(str(folder)).description.pieces == PIECES


def test_tokens_that_were_added_to_the_tokenizer_alone_are_left_out(folder):
    added = [{"id": 13, "content": "extra"}, {"id": 14, "content": "more"}]
    put(folder, PIECES[:13], {}, whole(added_tokens=added))
    assert open_weights(str(folder)).description.pieces == (*PIECES[:13], "extra")
