"""Labelled texts are read as they stand in files, and what is wrong is said with file and line."""

import csv
import json
import pathlib

import numpy as np
import pytest

from trainer.data.labelled_texts import (
    TextFormat,
    decoded,
    find_class_names,
    is_label,
    label_numbers,
    lines_of,
    read_labelled_texts,
    suspected_headers,
    without_empty,
)
from trainer.errors import InputError

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
PAIRS = TextFormat(text_column="question", pair_column="answer", label_column="score")


def shared(path):
    """Returns the path of a shared data file, or skips the test."""
    if not (SHARED / path).exists():
        pytest.skip(f"{SHARED / path} is absent: it is real data that is not part of the project")
    return SHARED / path


def write(folder, name, content):
    """Writes a file; returns its path."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(path, objective="single_label", **options):
    """Reads a file with a `TextFormat` of the options."""
    return read_labelled_texts(path, TextFormat(**options), objective)


def test_a_table_with_tabs_takes_quotes_as_they_are(tmp_path):
    path = write(tmp_path, "a.tsv", 'label\ttext\r\ngood\t"Fine", he said\r\n\r\nbad\t it\'s "bad\r\n')
    found = read(path)
    assert found.first == ['"Fine", he said', " it's \"bad"] and found.second is None
    assert found.labels == ["good", "bad"]
    assert found.lines.tolist() == [2, 4]
    assert found.place(1) == f"{path} line 4"


def test_a_table_with_commas_is_what_the_csv_module_wrote(tmp_path):
    rows = [("one, two", "a\nb", "0.5"), ('say "x"', "\ttab", "-1e3"), ("后，", "e", "7")]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer", "score"), *rows])
    found = read_labelled_texts(str(tmp_path / "a.csv"), PAIRS, "regression")
    assert list(zip(found.first, found.second, strict=True)) == [row[:2] for row in rows]
    assert found.labels == [0.5, -1000.0, 7.0]
    assert found.lines.tolist() == [2, 4, 5]  # where each begins


def test_json_lines_hold_texts_numbers_and_lists(tmp_path):
    rows = [{"text": "a\tb\nc", "label": ["x", "y"], "more": None}, {"label": [], "text": "ü"}]
    rows += [{"text": "c", "label": "y, z ,,y"}, {"text": "d", "label": 3}, {"text": "e", "label": ""}]
    path = write(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    found = read(path, "multi_label")
    assert found.first == ["a\tb\nc", "ü", "c", "d", "e"]
    assert found.labels == [("x", "y"), (), ("y", "z"), ("3",), ()]
    assert find_class_names(found.labels) == ("3", "x", "y", "z")
    expected = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(label_numbers(found, ("3", "x", "y", "z"), "multi_label", "data"), expected)


def test_json_labels_of_one_class_may_be_numbers_and_truth_values(tmp_path):
    rows = [{"text": "a", "label": label} for label in (1, "1", 1.0, True, 2.5, " b ")]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(path).labels == ["1", "1", "1", "true", "2.5", "b"]
    assert read(path, "multi_label").labels == [("1",), ("1",), ("1",), ("true",), ("2.5",), ("b",)]


def test_lines_that_begin_with_a_label(tmp_path):
    found = read(write(tmp_path, "a.txt", "1 a fine film .\n0  dull\n1\tgood  \n0\u3000 bad one\n"))
    assert (found.first, found.labels) == (["a fine film .", "dull", "good", "bad one"], ["1", "0", "1", "0"])


def test_columns_may_be_named_where_no_header_does(tmp_path):
    path = write(tmp_path, "a.tsv", "gut\t1\nschlecht\t0\n")
    found = read(path, column_names=["text", "label"])
    assert (found.first, found.labels, found.lines.tolist()) == (["gut", "schlecht"], ["1", "0"], [1, 2])


def test_labels_need_not_be_there_when_they_are_not_asked_for(tmp_path):
    names = {"column_names": ["text", "label"]}
    for content in ("gut\t1\nschlecht\t0\n", "gut\nschlecht\n"):
        found = read(write(tmp_path, "a.tsv", content), None, **names)
        assert found.first == ["gut", "schlecht"] and found.labels is None
    assert read(write(tmp_path, "a.jsonl", '{"text": "x"}'), None).first == ["x"]


def test_texts_may_be_empty_when_labels_are_not_asked_for(tmp_path):
    path = write(tmp_path, "a.csv", "question,answer\na,b\n,c\nd,  \n")
    found = read_labelled_texts(path, PAIRS)
    assert (found.first, found.second) == (["a", "", "d"], ["b", "c", "  "])


def test_a_cell_may_hold_a_text_of_any_length(tmp_path):
    text = "word, " * 30_000
    assert read(write(tmp_path, "a.csv", f'text,label\n"{text}",y\n')).first == [text]


def test_nothing_but_a_line_feed_ends_a_line():
    text = decoded(b"\xef\xbb\xbfone \x0c two\r\n\r\n\xe2\x80\xa8three\xc2\x85\n \nfour", "a.txt")
    assert lines_of(text) == ["one \x0c two", "", "\u2028three\x85", " ", "four"]
    notes = []
    assert without_empty(lines_of(text), "a.txt", notes.append) == ["one \x0c two", "\u2028three\x85", "four"]
    assert notes == ["a.txt: 2 of 5 lines are empty and get no answer"]
    assert without_empty(["a"], "a.txt", notes.append) == ["a"] and len(notes) == 1
    with pytest.raises(InputError, match=r"standard input line 2 is not UTF-8"):
        decoded(b"a\n\xff", "standard input")
    with pytest.raises(InputError, match=r"the command line: .* holds \\udcff, half of a character"):
        without_empty(["a \udcff"], "the command line", notes.append)


def test_a_word_is_a_label_where_it_names_known_classes_or_a_number():
    for word, objective, expected in (
        ("a", "single_label", True),
        ("a,b", "single_label", False),
        ("a,b", "multi_label", True),
        ("a,c", "multi_label", False),
        ("-1e3", "regression", True),
        ("a", "regression", False),
    ):
        assert is_label(word, objective, ("a", "b"), TextFormat()) == expected, (word, objective)


def test_a_first_line_with_a_label_of_its_own_may_be_a_header(tmp_path):
    names = {"column_names": ["text", "label"]}
    for name, content in (("a", "Sentence\tClass\nx\t1\ny\t1\n"), ("b", "x\t1\ny\t2\nz\t3\n")):
        write(tmp_path, f"{name}.tsv", content)
    found = read([f"{tmp_path}/a.tsv", f"{tmp_path}/b.tsv"], **names)
    assert suspected_headers(found) == [0]
    found = read([f"{tmp_path}/a.tsv", f"{tmp_path}/b.tsv"], "multi_label", **names)
    assert suspected_headers(found) == [0]


def test_several_files_are_read_in_order_and_each_knows_its_lines(tmp_path):
    for name, text in (("b1.txt", "x one\n"), ("b2.txt", "y two\nx three\n"), ("a.tsv", "text\tlabel\nfour\tz\n")):
        write(tmp_path, name, text)
    found = read([f"{tmp_path}/b*.txt", f"{tmp_path}/a.tsv", f"{tmp_path}/b1.txt"])
    assert found.first == ["one", "two", "three", "four"]
    assert [found.place(row).rpartition("/")[2] for row in range(4)] == [
        "b1.txt line 1",
        "b2.txt line 1",
        "b2.txt line 2",
        "a.tsv line 2",
    ]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert read(write(tmp_path, "a.csv", b"\xef\xbb\xbftext,label\nx,y\n")).first == ["x"]


def test_classes_are_sorted_by_number_where_they_are_numbers():
    assert find_class_names(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert find_class_names(["10", "9", "x"]) == ("10", "9", "x")
    assert find_class_names([("b", "a"), ()]) == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.tsv",
            "text\tlabels\nx\ty\n",
            {},
            r"a.tsv has no column 'label'; it has text, labels. Did you mean 'labels'\?",
        ),
        ("a.tsv", "gut\t1\n", {}, r"no column 'text'; it has gut, 1. Set text_column, .* set column_names"),
        ("a.tsv", "text\tlabel\nx\ty\nz\n", {}, r"a.tsv line 3 has 1 column instead of 2 \(text, label\)"),
        ("a.csv", "text,label\nx,y,z\n", {}, "a.csv line 2 has 3 columns instead of 2"),
        ("a.csv", 'text,label\nx,y\n"open,y\nz,y\n', {}, "begins on line 3 is no row of a CSV file.*not closed"),
        ("a.tsv", "text\ttext\tlabel\nx\ty\tz", {}, "line 1 names the column 'text' more than once"),
        ("a.tsv", "text\tlabel\nx\ty\n  \ty\n", {}, "a.tsv line 3: 'text' is empty"),
        ("a.tsv", "text\tlabel\nx\t \n", {}, "a.tsv line 2: the label is empty"),
        ("a.tsv", "", {}, "a.tsv holds no example"),
        ("a.tsv", "text\tlabel\n", {}, "a.tsv holds no example"),
        (
            "a.tsv",
            "text\tlabel\nx\ty\n",
            {"column_names": ["text", "label"]},
            "line 1 is a header .* remove column_names",
        ),
        (
            "a.tsv",
            "Label\tText\nx\ty\n",
            {"column_names": ["label", "text"]},
            "line 1 is a header .* remove column_names.* as it spells them: Label, Text",
        ),
        ("a.tsv", "x\ty\n", {"column_names": ["txt", "label"]}, r"no column 'text'; .* Did you mean 'txt'\?"),
        (
            "a.tsv",
            b"text\tlabel\nx\ty\n\xb2\xbb\ty\n",
            {},
            "a.tsv line 3 is not UTF-8 .* at byte 15 of the file.*iconv",
        ),
        (
            "a.jsonl",
            '{"text": "x", "label": "y"}\n{"text": "x",}\n',
            {},
            "a.jsonl line 2 is no JSON: .* at character 14",
        ),
        ("a.jsonl", "[1, 2]\n", {}, r"a.jsonl line 1 is no JSON object but \[1, 2\]"),
        ("a.jsonl", '{"txt": "x", "label": "y"}\n', {}, r"line 1 has no field 'text'; .* Did you mean 'txt'\?"),
        ("a.jsonl", '{"text": 5, "label": "y"}\n', {}, "line 1: 'text' must be a text, got 5"),
        ("a.jsonl", '{"text": "x", "label": NaN}\n', {}, "line 1: the label is nan, which names no class"),
        ("a.jsonl", '{"text": "\\ud83d", "label": "y"}\n', {}, r"line 1: 'text': .* holds \\ud83d, half of a char"),
        ("a.jsonl", '{"text": "x", "label": "\\ude00"}\n', {}, "line 1: the label: .* half of a character"),
        ("a.jsonl", '{"text": "x", "label": ' + "9" * 5000 + "}\n", {}, "line 1 is no JSON: Exceeds the limit"),
        ("a.jsonl", "[" * 100_000 + "\n", {}, "line 1 is no JSON: .*recursion"),
        ("a.jsonl", '{"text": "x", "label": ["y"]}\n', {}, "line 1: the label is a list; .* multi_label"),
        ("a.jsonl", '{"text": "x", "label": null}\n', {}, "line 1: the label must be a text or a number, got null"),
        ("a.txt", "1 fine\nfine\n", {}, "a.txt line 2 is no label and text with a space between: fine"),
        (
            "a.txt",
            "1 fine\n",
            {"pair_column": "b"},
            "a.txt is read as lines of a label and one text, but pair_column is 'b'",
        ),
        ("a.dat", "1 fine\n", {}, "cannot tell the format of .*a.dat by its name.* file_format"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, name, content, options, message):
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, name, content), **options)


@pytest.mark.parametrize("label", ["high", "nan", "inf", "1,5", "", "1_000", "1e39", "-4e38"])
def test_regression_takes_finite_numbers_alone(tmp_path, label):
    path = write(tmp_path, "a.tsv", f"text\tlabel\nx\t0.5\ny\t{label}\n")
    with pytest.raises(InputError, match=f"line 3: the label '{label}' is no finite number"):
        read(path, "regression")
    path = write(tmp_path, "a.jsonl", json.dumps({"text": "x", "label": 10**400}))
    with pytest.raises(InputError, match=r"line 1: the label '1000.*\.\.\.' is no finite number up to 3.4e\+38"):
        read(path, "regression")


def test_a_label_that_is_no_class_is_named_with_its_line_and_the_nearest(tmp_path):
    found = read(write(tmp_path, "dev.tsv", "text\tlabel\nx\tpositive\ny\tnegativ\n"))
    with pytest.raises(
        InputError,
        match=r"dev.tsv line 3: the label 'negativ' is none of the classes, which training data has as negative, "
        r"positive. Did you mean 'negative'\?",
    ):
        label_numbers(found, ("negative", "positive"), "single_label", "training data")


def test_a_missing_file_is_named_with_the_nearest_beside_it(tmp_path):
    write(tmp_path, "train.tsv", "")
    with pytest.raises(InputError, match=r"there is no file .*trian.tsv. Did you mean 'train.tsv'\?"):
        read(f"{tmp_path}/trian.tsv")
    with pytest.raises(InputError, match=r"is a folder: name the files, such as .*train.tsv"):
        read(str(tmp_path))
    with pytest.raises(InputError, match="no file is named"):
        read([])


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match=r"file_format must be one of .*, got 'tvs'. Did you mean 'tsv'"):
        TextFormat(file_format="tvs")


def test_the_stanford_sentiment_treebank_is_read_whole():
    found = read([str(shared("en/sst2/train.txt")), str(shared("en/sst2/dev.txt"))])
    assert len(found) == 6920 + 872
    assert find_class_names(found.labels) == ("0", "1")
    assert found.place(6920).endswith("dev.txt line 1") and found.first[6920] == "one long string of cliches ."


def test_chinese_reviews_are_read_whole():
    found = read(str(shared("zh/sentiment/train.tsv")), column_names=["text", "label"])
    assert len(found) == 16_883
    assert label_numbers(found, ("0", "1"), "single_label", "data").sum() == 8588
