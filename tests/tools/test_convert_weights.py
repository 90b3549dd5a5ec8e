"""The command that looks at weights and converts them, as a person types it."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from small_weights import CONFIG, PIECES, small_source

from tools import command_line, convert_weights
from trainer.models.architecture import EncoderConfig
from trainer.weights.opening import open_weights
from trainer.weights.writing import FORMATS, write_weights

WORDS = "encoder/embeddings/word_embeddings/embeddings"


def exit_code(*arguments):
    with pytest.raises(SystemExit) as stopped:
        command_line.run(convert_weights.main, [str(argument) for argument in arguments])
    return stopped.value.code


@pytest.fixture
def weights(tmp_path):
    """A folder of Hugging Face's."""
    write_weights(small_source(), str(tmp_path / "in"), "hugging_face")
    return tmp_path / "in"


def test_weights_are_described_and_nothing_is_written(weights, tmp_path, capsys):
    assert exit_code(weights) == 0
    printed = capsys.readouterr().out
    names = small_source().names
    for words in (
        "Hugging Face, bert",
        "2 layers, hidden size 16, 2 heads, feed-forward 24, learned positions up to 20",
        "vocabulary: 14 tokens (WordPiece, lower-cased)",
        "heads: masked_language_model, pooler, sentence_pair",
        f"{len(names)} tensors, {sum(small_source().read(name).size for name in names):,} numbers",
    ):
        assert words in printed
    assert "<-" not in printed
    assert os.listdir(tmp_path) == ["in"]
    assert exit_code(weights, "--all") == 0
    printed = capsys.readouterr().out
    origins = ", ".join(f"bert.encoder.layer.1.attention.self.{part}.weight" for part in ("query", "key", "value"))
    assert f"encoder/layer_1/attention/query_key_value/kernel [16, 48] <- {origins}" in printed
    assert printed.count("<-") == len(names)


def test_what_is_unknown_or_says_nothing_is_told(weights, capsys):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(weights / "model.safetensors")
    more = {"qa_outputs.weight": np.zeros((2, 16), np.float32), "bert.embeddings.position_ids": np.arange(20)}
    save_file(tensors | more, weights / "model.safetensors")
    assert exit_code(weights) == 0
    printed = capsys.readouterr().out
    assert "unknown: qa_outputs.weight" in printed
    assert "1 others say nothing about the model" in printed


def test_what_is_unknown_is_left_out_only_if_it_is_allowed_by_name(weights, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    tensors, more = load_file(weights / "model.safetensors"), {"qa_outputs.weight": np.zeros((2, 16), np.float32)}
    save_file(tensors | more, weights / "model.safetensors")
    convert = [weights, tmp_path / "out", "--to", "tensorflow1"]
    assert exit_code(*convert) == 2
    told = capsys.readouterr()
    assert "qa_outputs.weight is unknown" in told.err and "--allow_unused REGEX" in told.err
    assert "written" not in told.out and not (tmp_path / "out").exists()
    assert exit_code(*convert, "--allow_unused", "^qa_outputs") == 0
    assert "written to" in capsys.readouterr().out
    assert set(open_weights(str(tmp_path / "out")).names) == set(small_source().names)


def test_a_tokenizer_whose_ids_no_longer_hold_is_left_out_and_that_is_told(weights, tmp_path, capsys):
    (weights / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    (tmp_path / "keep.json").write_text("[0, 1, 2, 3, 4, 6, 5]")
    assert exit_code(weights, tmp_path / "out", "--to", "hugging_face", "--keep_tokens", tmp_path / "keep.json") == 0
    printed = capsys.readouterr().out
    assert "left out, its ids are others now: the tokenizer (tokenizer_config.json, vocab.txt)" in printed
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    assert exit_code(weights, tmp_path / "grown", "--to", "hugging_face", "--vocabulary_size", 20) == 0
    assert "left out" not in capsys.readouterr().out
    assert (tmp_path / "grown" / "vocab.txt").read_bytes() == (weights / "vocab.txt").read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_converted_to_every_format_and_back(weights, tmp_path, capsys, kind):
    assert exit_code(weights, tmp_path / "out", "--to", kind) == 0
    assert f"written to {tmp_path / 'out'} as {kind}" in capsys.readouterr().out
    assert exit_code(tmp_path / "out", tmp_path / "back", "--to", "hugging_face") == 0
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (weights / "model.safetensors").read_bytes()
    assert (tmp_path / "back" / "vocab.txt").read_bytes() == (weights / "vocab.txt").read_bytes()
    assert (tmp_path / "back" / "config.json").read_bytes() == (weights / "config.json").read_bytes()


def test_what_a_format_has_no_place_for_is_told(weights, tmp_path, capsys):
    assert exit_code(weights, tmp_path / "out", "--to", "tensorflow1", "--architecture", "electra") == 0
    left_out = [name for name in small_source().names if name.startswith(("pooler/", "sentence_pair/"))]
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(f"left out, the format has no place for them: {', '.join(left_out)}")


def test_the_vocabulary_is_changed_on_the_way(weights, tmp_path, capsys):
    vocabulary = tmp_path / "new.txt"
    pieces = (*PIECES[:8], "unable", "中")
    vocabulary.write_text("".join(f"{piece}\n" for piece in pieces))
    assert exit_code(weights, tmp_path / "out", "--to", "tensorflow1", "--vocabulary", vocabulary) == 0
    printed = capsys.readouterr().out
    assert "vocabulary: 8 pieces kept, 1 begin as the mean of others, 1 at random" in printed
    assert "vocabulary: 10 tokens (WordPiece, lower-cased)" in printed
    back = open_weights(str(tmp_path / "out"))
    assert back.description.pieces == pieces
    np.testing.assert_array_equal(back.read(WORDS)[:8], small_source().read(WORDS)[:8])


def test_tokens_are_kept_and_compounds_added(weights, tmp_path, capsys):
    (tmp_path / "keep.json").write_text("[0, 1, 2, 3, 4, 6, 5]")
    (tmp_path / "compounds.json").write_text("[[6, 5], [[5, 6], [2, 1]]]")
    compounds = ["--compound_tokens", tmp_path / "compounds.json"]
    kept = ["--keep_tokens", tmp_path / "keep.json"]
    assert exit_code(weights, tmp_path / "out", "--to", "keras", *kept, *compounds) == 0
    assert "vocabulary: 9 tokens, 2 of them compound" in capsys.readouterr().out
    back, rows = open_weights(str(tmp_path / "out")), small_source().read(WORDS)
    assert back.description.pieces == (*PIECES[:5], "cat", "the", "thecat", "catthe")
    expected = [(rows[5] + rows[6]) / 2, (2 * rows[6] + rows[5]) / 3]
    np.testing.assert_allclose(back.read(WORDS)[7:], expected, rtol=1e-6)
    assert exit_code(weights, *compounds) == 0
    assert "vocabulary: 16 tokens, 2 of them compound" in capsys.readouterr().out


def test_positions_and_size_are_extended(weights, tmp_path, capsys):
    options = ["--max_length", 64, "--extend_by", "repeat", "--vocabulary_size", 20]
    assert exit_code(weights, tmp_path / "out", "--to", "checkpoint", *options) == 0
    assert "positions: 64" in capsys.readouterr().out
    back = open_weights(str(tmp_path / "out"))
    assert (back.description.encoder.max_length, back.description.vocabulary_size) == (64, 20)
    assert back.description.pieces[-1] == "[unused5]"


def test_shared_layers_are_unshared(tmp_path, capsys):
    source = small_source(EncoderConfig(**(vars(CONFIG) | {"share_layers": True})))
    write_weights(source, str(tmp_path / "in"), "hugging_face")
    assert exit_code(tmp_path / "in", tmp_path / "out", "--to", "hugging_face", "--unshare_layers") == 0
    assert "layers: 2, each with weights of its own" in capsys.readouterr().out
    back = open_weights(str(tmp_path / "out"))
    assert back.kind == "Hugging Face, bert"
    for layer in (0, 1):
        name = f"encoder/layer_{layer}/output/kernel"
        np.testing.assert_array_equal(back.read(name), source.read("encoder/layer_0/output/kernel"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["OUT"], "OUTPUT and --to belong together"),
        (["--to", "keras"], "OUTPUT and --to belong together"),
        (["OUT", "--to", "keras", "--architecture", "bert"], "not for 'keras'"),
        (["OUT", "--to", "hugging_face", "--architecture", "gpt2"], "architecture 'gpt2' is none of bert"),
        (
            ["OUT", "--to", "hugging_face", "--architecture", "distilbert"],
            "distilbert has no encoder.type_vocabulary_size",
        ),
        (["IN", "--to", "hugging_face"], "is not empty: name another folder"),
        (["--vocabulary", "nowhere.txt"], "there is no vocabulary file nowhere.txt"),
        (["--vocabulary_size", "3"], "has 14 tokens: 3 are fewer"),
        (["--vocabulary_size", "0"], "has 14 tokens: 0 are fewer"),
        (["--vocabulary_size", "20", "--keep_tokens", "x.json"], "exclude one another"),
        (["--keep_tokens", "nowhere.json"], "there is no file nowhere.json"),
        (["--max_length", "0"], "at least 1 position"),
        (["--max_length", "1000"], "20 positions combine to 400 at most"),
        (["--unshare_layers"], "has no shared layers"),
        (["--config", "nowhere.json"], "there is no configuration nowhere.json"),
    ],
)
def test_mistakes_end_with_a_message_and_exit_code_2(weights, tmp_path, capsys, options, message):
    places = {"OUT": tmp_path / "out", "IN": weights}
    assert exit_code(weights, *(places.get(option, option) for option in options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"a": 1}', 'must hold a list, it holds {"a": 1}'),
        ("[0, 99]", "no token id 99"),
        ('["the"]', "no token id 'the'"),
        ("[[1]]", "no token id [1]"),
    ],
)
def test_lists_of_tokens_that_are_none_are_refused(weights, tmp_path, capsys, content, message):
    (tmp_path / "list.json").write_text(content)
    assert exit_code(weights, "--keep_tokens", tmp_path / "list.json") == 2
    assert message in capsys.readouterr().err
    (tmp_path / "list.json").write_text("[3]")
    assert exit_code(weights, "--compound_tokens", tmp_path / "list.json") == 2
    assert "a compound token is a list of ids" in capsys.readouterr().err


def test_the_command_runs_as_a_process_of_its_own(weights, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}

    def run(*arguments):
        command = [sys.executable, "-m", "tools.convert_weights", *map(str, arguments)]
        folder = pathlib.Path(convert_weights.__file__).parents[1]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)

    done = run(weights, tmp_path / "out", "--to", "tensorflow1")
    assert done.returncode == 0 and "as tensorflow1" in done.stdout
    assert open_weights(str(tmp_path / "out")).kind == "TensorFlow 1, bert"
    failed = run(tmp_path / "nowhere")
    assert failed.returncode == 2 and failed.stderr.startswith("error: there are no weights at")
    assert "Traceback" not in failed.stderr
    shown = run("--help")
    assert shown.returncode == 0 and all(
        f"--{name}" in shown.stdout for name in ("to", "keep_tokens", "unshare_layers")
    )
