"""Documents are the same however files are divided, and what is wrong with a file is said precisely."""

import gzip
import itertools
import json
import random

import pytest

from trainer.data.documents import ReadingOptions, Slice, Unit, divide_into_units, find_files, read_documents
from trainer.errors import InputError

PLAIN = ReadingOptions()


def documents_of(path, options=PLAIN, cuts=()):
    """The documents of a file that is cut at some bytes."""
    edges = [0, *sorted(cuts), None]
    units = [Unit((Slice(str(path), a, b),), 0) for a, b in itertools.pairwise(edges)]
    return [document for unit in units for document in read_documents(unit, options)]


def random_text(rng):
    lines = rng.choices(["a", "bb cc", "déjà vu", "  ", "", "", " = T = ", "中文。", "x" * 30], k=rng.randrange(40))
    return rng.choice(["\n", "\r\n"]).join(lines) + rng.choice(["", "\n", "\n\n"])


@pytest.mark.parametrize("options", [PLAIN, ReadingOptions(document_start=" = .* = ")])
def test_cuts_anywhere_neither_lose_nor_repeat_nor_break_documents(tmp_path, options):
    rng, path = random.Random(3), tmp_path / "a.txt"
    for _ in range(60):
        content = random_text(rng).encode()
        path.write_bytes(content)
        whole = documents_of(path, options)
        assert [line for document in whole for line in document] == [
            s for x in content.decode().split("\n") if (s := x.strip())
        ]
        for _ in range(10):
            cuts = rng.sample(range(1, len(content)), min(3, len(content) - 1)) if len(content) > 1 else []
            assert documents_of(path, options, cuts) == whole


def test_cuts_anywhere_keep_json_lines_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = ["one", "two\nlines", "", "drei", "四", "a\n\nb"]
    content = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode() + b"\n\n"
    path.write_bytes(content)
    expected = [["one"], ["two", "lines"], ["drei"], ["四"], ["a", "b"]]
    for cut in range(1, len(content)):
        assert documents_of(path, cuts=[cut]) == expected


def test_blank_lines_separate_documents_or_files_do_or_headings_do(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeff = A = \n\nfirst\n\n\n = B = \nsecond\n", encoding="utf-8")
    assert documents_of(path) == [["= A ="], ["first"], ["= B =", "second"]]
    assert documents_of(path, ReadingOptions(one_document_per_file=True)) == [["= A =", "first", "= B =", "second"]]
    path.write_text(" = A = \n\nfirst\n\n\n = B = \nsecond\n", encoding="utf-8")
    assert documents_of(path, ReadingOptions(document_start=" = ")) == [["= A =", "first"], ["= B =", "second"]]


def test_gzipped_files_read_as_plain_ones(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    assert documents_of(tmp_path / "a.txt") == documents_of(tmp_path / "b.txt.gz") == [["one"], ["two"]]


def test_bytes_that_are_not_utf8_are_named_with_file_and_offset(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"good\n\n" + b"more good\n" * 3 + b"caf\xe9 au lait\n")
    with pytest.raises(InputError, match=r"latin\.txt is not UTF-8: byte 39 "):
        documents_of(path)
    assert documents_of(path, ReadingOptions(invalid_utf8="replace"))[1][-1] == "caf\ufffd au lait"
    (tmp_path / "wide.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        documents_of(tmp_path / "wide.txt")


def test_a_missing_json_field_is_named_with_those_that_are_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"body": "y", "id": 1}\n')
    with pytest.raises(InputError, match=r"'text' of the line at byte 14; it has: body, id"):
        documents_of(path)
    path.write_text('{"text": "x"}\n{oops\n')
    with pytest.raises(InputError, match="not JSON at byte 14"):
        documents_of(path)


def test_inputs_are_files_folders_and_patterns_each_file_once(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.jsonl", "deep/c.txt.gz", "deep/readme.md"):
        (tmp_path / name).write_bytes(b"")
    found = [file.path.removeprefix(f"{tmp_path}/") for file in find_files([f"{tmp_path}/*.txt", str(tmp_path)])]
    assert found == ["b.txt", "a.jsonl", "deep/c.txt.gz"]
    with pytest.raises(InputError, match="no file matches"):
        find_files([str(tmp_path / "nothing*")])
    with pytest.raises(InputError, match=r"readme\.md"):
        find_files([str(tmp_path / "deep" / "readme.md")])


def test_units_cover_large_files_in_ranges_and_small_files_together(tmp_path):
    (tmp_path / "large.txt").write_bytes(b"some words here\n\n" * 200_000)
    for number in range(5):
        (tmp_path / f"small-{number}.txt").write_bytes(b"a small document\n")
    units = divide_into_units(find_files([str(tmp_path)]), PLAIN)
    assert len(units) == 5  # four ranges of a megabyte, and the small files
    assert [len(unit.slices) for unit in units] == [1, 1, 1, 1, 5]
    assert sum(1 for unit in units for _ in read_documents(unit, PLAIN)) == 200_005


@pytest.mark.parametrize("pattern", ["(", "", "x*"])
def test_a_useless_pattern_is_refused(pattern):
    with pytest.raises(InputError, match="document_start"):
        ReadingOptions(document_start=pattern)
