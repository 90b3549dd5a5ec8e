"""The commands that prepare and show data, as a person types them."""

import importlib.util

import pytest

from tools import build_vocab, command_line, prepare_data, show_data


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    documents = [
        f"The {word} fox jumps over document {n}.\nAnother line." for n in range(40) for word in ("red", "sly")
    ]
    path.write_text("\n\n".join(documents))
    return path


def exit_code(main, *arguments):
    with pytest.raises(SystemExit) as stopped:
        command_line.run(main, [str(argument) for argument in arguments])
    return stopped.value.code


def test_text_is_prepared_summed_up_and_shown(corpus, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--vocab_size", "120", "--sequence_length", "32", "--plain"]
    assert exit_code(prepare_data.main, "--input", corpus, "--output", output, *options) == 0
    printed = capsys.readouterr()
    assert "documents" in printed.out and "80" in printed.out and "120 pieces, uncased" in printed.out
    assert "tokenizing:" in printed.err and "tokens/s" in printed.err
    assert exit_code(show_data.main, output, "--rows", "2", "--masking", "none") == 0
    shown = capsys.readouterr().out
    assert "[CLS] the" in shown and "fox jumps over document" in shown and "another line . [SEP]" in shown
    assert exit_code(show_data.main, output, "--rows", "20", "--masking", "whole_word") == 0
    masked = capsys.readouterr().out
    assert "→[MASK]›" in masked
    assert exit_code(show_data.main, output, "--first", "100000") == 2
    assert "numbered from 0" in capsys.readouterr().err


def test_shown_rows_are_found_in_gzipped_shards_and_across_shards(corpus, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--vocab_size", "120", "--sequence_length", "16", "--compress", "--num_shards", "3", "--held_out", "0"]
    assert exit_code(prepare_data.main, "--input", corpus, "--output", output, *options) == 0
    capsys.readouterr()
    assert exit_code(show_data.main, output, "--rows", "100000", "--masking", "none") == 0
    whole = capsys.readouterr().out
    numbers = {int(part.split()[0]) for part in whole.split("over document ")[1:]}
    assert numbers == set(range(40))


def test_a_vocabulary_built_beforehand_is_the_one_that_preparing_learns(corpus, tmp_path, capsys):
    vocabulary = tmp_path / "vocab.txt"
    assert exit_code(build_vocab.main, "--input", corpus, "--size", "120", "--output", vocabulary) == 0
    assert exit_code(build_vocab.main, "--input", corpus, "--size", "120", "--output", vocabulary) == 2
    assert "--overwrite" in capsys.readouterr().err
    arguments = ["--input", corpus, "--sequence_length", "32", "--output"]
    assert exit_code(prepare_data.main, *arguments, tmp_path / "given", "--vocab", vocabulary) == 0
    assert exit_code(prepare_data.main, *arguments, tmp_path / "learned", "--vocab_size", "120") == 0
    given, learned = ((tmp_path / name / "vocab.txt").read_bytes() for name in ("given", "learned"))
    assert given == learned == vocabulary.read_bytes()


def test_documents_that_are_left_out_are_shown_by_reason(corpus, tmp_path, capsys):
    text = corpus.read_text()
    long = " ".join(f"word{n}" for n in range(60))
    corpus.write_text(f"{text}\n\nshort\n\n{long} one\n\n{long} two")
    options = ["--vocab_size", "120", "--near_duplicates", "0.8", "--min_words", "2"]
    assert exit_code(prepare_data.main, "--input", corpus, "--output", tmp_path / "out", *options) == 0
    printed = capsys.readouterr().out
    assert "1 with too few words" in printed and "1 near-duplicates" in printed
    assert exit_code(prepare_data.main, "--input", corpus, "--output", tmp_path / "no", "--near_duplicates", "80") == 2
    assert "near_duplicates is a similarity from 0.5 to 1, got 80" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs Apache Beam")
def test_a_runner_of_beam_makes_the_same_files_and_takes_beams_options(corpus, tmp_path, capsys):
    arguments = ["--input", corpus, "--vocab_size", "120", "--plain", "--output"]
    beam = ["--runner", "direct", "--prism_location", "/none"]
    assert exit_code(prepare_data.main, *arguments, tmp_path / "local") == 0
    assert exit_code(prepare_data.main, *arguments, tmp_path / "beam", *beam, "--direct_num_workers=1") == 0
    assert "Beam, direct" in capsys.readouterr().out
    for path in (tmp_path / "local").iterdir():
        assert path.name == "manifest.json" or path.read_bytes() == (tmp_path / "beam" / path.name).read_bytes()
    assert exit_code(prepare_data.main, *arguments, tmp_path / "x", *beam, "--sequence_lenght", "64") == 2
    assert "did you mean --sequence_length?" in capsys.readouterr().err
    assert exit_code(prepare_data.main, *arguments, tmp_path / "x", *beam, "--workers", "2") == 2
    assert "--direct_num_workers" in capsys.readouterr().err


def test_options_of_nobody_are_refused_without_a_runner(corpus, tmp_path, capsys):
    arguments = ["--input", corpus, "--output", tmp_path / "out"]
    assert exit_code(prepare_data.main, *arguments, "--direct_num_workers=1") == 2
    assert "unrecognized arguments: --direct_num_workers=1" in capsys.readouterr().err
    assert exit_code(prepare_data.main, *arguments, "--runner", "slurm") == 2
    assert "local, direct, flink, spark, dataflow" in capsys.readouterr().err


def test_mistakes_end_with_a_message_and_exit_code_2(corpus, tmp_path, capsys):
    both = ["--vocab", "v.txt", "--vocab_size", "100"]
    assert exit_code(prepare_data.main, "--input", corpus, "--output", tmp_path / "out", *both) == 2
    assert "give only one of them" in capsys.readouterr().err
    assert exit_code(prepare_data.main, "--input", tmp_path / "nothing.txt", "--output", tmp_path / "out") == 2
    assert "nothing.txt" in capsys.readouterr().err
