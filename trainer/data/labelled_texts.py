"""Labelled texts: one or two sentences with a class, several classes or a number each, read from files.

Tables (`.tsv`, `.csv`) have columns that a header line or the caller names, JSON lines (`.jsonl`) have fields, and lines
that begin with their label (`.txt`) are how the Stanford Sentiment Treebank is often published. Files are local or
`gs://`. Whatever is wrong is said with file and line, and where the fix lies.
"""

import collections
import csv
import dataclasses
import difflib
import io
import json
import math
import os
import re

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.errors import InputError

SUFFIXES = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".txt": "label_first"}
OBJECTIVES = ("single_label", "multi_label", "regression")
_SHOWN_CHARACTERS = 40  # of a text in a message
_SHOWN_NAMES = 20
_GREATEST_NUMBER = float(np.finfo(np.float32).max)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
csv.field_size_limit((1 << 31) - 1)  # a text may be of any length; Python's own limit is 131,072 characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How files hold texts and labels.

    Args:
        text_column: column (or JSON field) of the text.
        pair_column: column of the second text; None where examples are single texts.
        label_column: column of the label.
        column_names: names of all columns of tables without a header line, in order; None where the first line has them.
        file_format: `tsv`, `csv`, `jsonl` or `label_first` (lines of a label, white space, a text); `auto` goes by the
            suffix, `.txt` being `label_first`.
        label_separator: what separates several labels in one cell, for the objective `multi_label`.
    """

    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    column_names: tuple | None = None
    file_format: str = "auto"
    label_separator: str = ","

    def __post_init__(self):
        formats = ("auto", *SUFFIXES.values())
        if self.file_format not in formats:
            raise ValueError(
                f"file_format must be one of {', '.join(formats)}, got {self.file_format!r}."
                + _did_you_mean(self.file_format, formats)
            )
        if not self.label_separator:
            raise ValueError("label_separator must not be empty")

    def format_of(self, path):
        """Returns the format of a file.

        Raises:
            InputError: if it is to be told by the suffix, which is another one.
        """
        if self.file_format != "auto":
            return self.file_format
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in SUFFIXES:
            raise InputError(
                f"cannot tell the format of {path} by its name: it should end in {', '.join(SUFFIXES)}. Rename it, or set "
                "file_format."
            )
        return SUFFIXES[suffix]


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts with what was said of them.

    Attributes:
        paths: the files, in the order in which they were read.
        file_numbers: `[texts]` index into `paths`.
        lines: `[texts]` line of the file, from 1.
        first: list of texts.
        second: list of the second texts; None where there are none.
        labels: list: a string each (`single_label`), a tuple of strings (`multi_label`), or a float (`regression`);
            None if they were not asked for.
    """

    paths: tuple
    file_numbers: np.ndarray
    lines: np.ndarray
    first: list
    second: list | None
    labels: list | None

    def __len__(self):
        return len(self.first)

    def place(self, number):
        """Returns where a text stands, for messages."""
        return f"{self.paths[self.file_numbers[number]]} line {self.lines[number]:,}"


def read_labelled_texts(sources, text_format, objective=None):
    """Reads files.

    Args:
        sources: a path, a pattern with `*`, `?` and `[...]`, or a list of them.
        text_format: `TextFormat`.
        objective: `single_label`, `multi_label` or `regression`: what labels are; None to leave them out, which then need
            not be there, and texts may be empty.

    Returns:
        `LabelledTexts`: all examples, file by file in the order of `sources`, then of names.

    Raises:
        InputError: naming the file and the line, if a file is missing or empty, is not UTF-8, lacks a column, or has a row
            with too few or too many cells, without a text, or with a label that cannot be read.
    """
    paths = find_files(sources)
    file_numbers, lines, first, second, labels = [], [], [], [], []
    for number, path in enumerate(paths):
        before = len(first)
        for line, cells in _rows(path, text_format, objective is not None):
            place = f"{path} line {line:,}"
            first.append(_text(cells[0], text_format.text_column, place, objective))
            if text_format.pair_column is not None:
                second.append(_text(cells[1], text_format.pair_column, place, objective))
            if objective is not None:
                labels.append(_label(cells[-1], objective, text_format, place))
            lines.append(line)
        if len(first) == before:
            raise InputError(f"{path} holds no example.")
        file_numbers += [number] * (len(first) - before)
    return LabelledTexts(
        paths=paths,
        file_numbers=np.array(file_numbers, np.int32),
        lines=np.array(lines, np.int32),
        first=first,
        second=None if text_format.pair_column is None else second,
        labels=None if objective is None else labels,
    )


def find_files(sources):
    """Returns the paths of the files that sources name, each once.

    Args:
        sources: as of `read_labelled_texts`.

    Raises:
        InputError: if a source is no file and matches none; with the nearest name beside it.
    """
    found = {}
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources:
        path = str(source)
        if storage.is_folder(path):
            raise InputError(
                f"{path} is a folder: name the files, such as {storage.join(path, 'train.tsv')!r}; a pattern with * may "
                "name several."
            )
        if storage.exists(path):
            found[path] = None
            continue
        matching = sorted(name for name in tf.io.gfile.glob(path) if not storage.is_folder(name))
        if not matching:
            folder, name = os.path.split(path)
            raise InputError(f"there is no file {path}." + _did_you_mean(name, storage.listing(folder or ".")))
        found |= dict.fromkeys(matching)
    if not found:
        raise InputError("no file is named: give the path of at least one.")
    return tuple(found)


def _rows(path, text_format, labelled):
    """Yields (line, [text, second text if there is to be one, label if asked for]) of each example of a file."""
    kind = text_format.format_of(path)
    text = _content(path)
    wanted = [text_format.text_column]
    wanted += [] if text_format.pair_column is None else [text_format.pair_column]
    wanted += [text_format.label_column] if labelled else []
    if kind == "jsonl":
        return _json_rows(path, text, wanted)
    if kind == "label_first":
        if text_format.pair_column is not None:
            raise InputError(
                f"{path} is read as lines of a label and one text, but pair_column is {text_format.pair_column!r}: two "
                "texts need a table or JSON lines (file_format 'tsv', 'csv' or 'jsonl')."
            )
        return _label_first_rows(path, text, labelled)
    return _table_rows(path, _tsv_cells(text) if kind == "tsv" else _csv_cells(path, text), text_format, wanted)


def read_lines(path):
    """Returns the list of lines of a UTF-8 file.

    Args:
        path: of the file.

    Raises:
        InputError: if it cannot be read, or is not UTF-8.
    """
    return lines_of(_content(path))


def lines_of(text):
    """Returns the list of lines of a text; nothing but a line feed, or a carriage return and one, ends a line."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def decoded(content, name):
    """Returns the text of UTF-8 bytes, without a byte order mark.

    Args:
        content: the bytes.
        name: where they are from, for messages.

    Raises:
        InputError: naming the line that is not UTF-8.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} line {line:,} is not UTF-8 ({error.reason} at byte {error.start:,} of the file). Convert it, e.g. "
            f"`iconv -f gb18030 -t utf-8 {os.path.basename(name)}`, or save it as UTF-8."
        ) from None


def without_empty(lines, name, report):
    """Returns the lines that hold something, and tells how many do not.

    Args:
        lines: list of strings.
        name: where they are from, for messages.
        report: callable that shows one line to a person.

    Raises:
        InputError: see `check_characters`.
    """
    texts = [line for line in lines if line.strip()]
    for text in texts:
        check_characters(text, name)
    if left_out := len(lines) - len(texts):
        report(f"{name}: {left_out:,} of {len(lines):,} lines are empty and get no answer")
    return texts


def check_characters(text, place):
    """Refuses a half of a surrogate pair: it is no character, and no file can hold it.

    Args:
        text: string.
        place: where it stands, for the message.

    Raises:
        InputError: if there is one.
    """
    if found := _SURROGATE.search(text):
        raise InputError(
            f"{place}: {_shown(ascii(text))} holds {ascii(found[0])[1:-1]}, half of a character (a lone surrogate). "
            "Remove it, or write the text as UTF-8."
        )


def _content(path):
    """Returns the text of a UTF-8 file."""
    try:
        return decoded(storage.read_bytes(path), path)
    except tf.errors.OpError as error:
        raise InputError(f"cannot read {path}: {error.message}") from error


def _lines(text):
    """Yields (number from 1, line) of lines that hold something."""
    for number, line in enumerate(lines_of(text), 1):
        if line:
            yield number, line


def _tsv_cells(text):
    """Yields (line, cells); quotes mean nothing in such a table."""
    for number, line in _lines(text):
        yield number, line.split("\t")


def _csv_cells(path, text):
    """Yields (line, cells) of a table with commas, in which quoted cells may hold commas and line ends."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}: the row that begins on line {line:,} is no row of a CSV file: {error}. A quote that is not closed, "
            "or not doubled inside a quoted cell?"
        ) from None


def _table_rows(path, numbered_cells, text_format, wanted):
    """Yields (line, wanted cells) of the rows of a table."""
    names, places = text_format.column_names, None
    for line, cells in numbered_cells:
        if places is None:
            is_header = names is None
            names = _stripped(cells) if is_header else _present_names(path, line, cells, text_format, wanted)
            places = _places(path, line, names, wanted, is_header)
            if is_header:
                continue
        if len(cells) != len(names):
            columns = "1 column" if len(cells) == 1 else f"{len(cells)} columns"
            raise InputError(
                f"{path} line {line:,} has {columns} instead of {len(names)} ({_listed(names)}). A text must not "
                "hold the character that separates columns, unless quoted in a .csv."
            )
        yield line, [cells[place] for place in places]


def _stripped(cells):
    return [cell.strip() for cell in cells]


def _folded(names):
    return [name.casefold() for name in names]


def _present_names(path, line, cells, text_format, wanted):
    """Returns the names of the columns of a table without a header, of which the label's may be absent if not wanted."""
    names = [str(name) for name in text_format.column_names]
    without_label = [name for name in names if name != text_format.label_column]
    if _folded(_stripped(cells)) in (_folded(names), _folded(without_label)):
        raise InputError(
            f"{path} line {line:,} is a header with the column names: remove column_names. The columns are then called "
            f"as it spells them: {_listed(_stripped(cells))}."
        )
    if text_format.label_column not in wanted and len(cells) == len(without_label):
        return without_label
    return names


def _places(path, line, names, wanted, is_header):
    """Returns the places of the wanted columns among all."""
    for name in wanted:
        if names.count(name) == 1:
            continue
        if names.count(name) > 1:
            raise InputError(f"{path} line {line:,} names the column {name!r} more than once.")
        hint = (
            " Set text_column, pair_column or label_column; where the first line is no header, set column_names."
            if is_header
            else " They are what column_names says."
        )
        raise InputError(
            f"{path} has no column {name!r}; it has {_listed(names)}." + (_did_you_mean(name, names) or hint)
        )
    return [names.index(name) for name in wanted]


def _json_rows(path, text, wanted):
    """Yields (line, wanted values) of JSON lines."""
    for line, content in _lines(text):
        if not content.strip():
            continue
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError) as error:  # numbers of 4,300 digits and more, and endless brackets, too
            at = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise InputError(f"{path} line {line:,} is no JSON: {getattr(error, 'msg', error)}{at}.") from None
        if not isinstance(fields, dict):
            raise InputError(
                f"{path} line {line:,} is no JSON object but {_shown(content)}: write {{...}} on each line."
            )
        for name in wanted:
            if name not in fields:
                raise InputError(
                    f"{path} line {line:,} has no field {name!r}; it has {_listed(fields)}."
                    + (_did_you_mean(name, fields) or " Set text_column, pair_column or label_column.")
                )
        yield line, [fields[name] for name in wanted]


def _label_first_rows(path, text, labelled):
    """Yields (line, [text, label if asked for]) of lines that begin with a label."""
    for line, content in _lines(text):
        label, rest = split_label(content)
        if not rest:
            raise InputError(
                f"{path} line {line:,} is no label and text with a space between: {_shown(content)}. For other files set "
                "file_format."
            )
        yield line, [rest, label] if labelled else [rest]


def split_label(line):
    """Returns the first word of a line, and the rest of it; empty where there is none."""
    label, rest, *_ = [*line.strip().split(None, 1), "", ""]
    return label, rest


def _text(value, column, place, objective):
    """Returns a text as it was found, checked; without an objective, when only answers are wanted, it may be empty."""
    if not isinstance(value, str):
        raise InputError(f"{place}: {column!r} must be a text, got {_shown(json.dumps(value, ensure_ascii=False))}.")
    check_characters(value, f"{place}: {column!r}")
    if objective is not None and not value.strip():
        raise InputError(f"{place}: {column!r} is empty. Remove the line, or fill it.")
    return value


def _label(value, objective, text_format, place):
    """Returns a label as the objective has it."""
    if objective == "regression":
        return _number(value, place)
    if objective == "multi_label":
        values = value if isinstance(value, list) else [value]
        values = value.split(text_format.label_separator) if isinstance(value, str) else values
        names = [_name(each, place) for each in values if each != "" and str(each).strip()]
        return tuple(dict.fromkeys(names))
    if isinstance(value, list):
        raise InputError(f"{place}: the label is a list; one class an example is expected, unless multi_label is set.")
    name = _name(value, place)
    if not name:
        raise InputError(f"{place}: the label is empty. Remove the line, or fill it.")
    return name


def _scalar(value, place):
    if not isinstance(value, str | int | float):
        raise InputError(f"{place}: the label must be a text or a number, got {_shown(json.dumps(value))}.")
    return value


def _name(value, place):
    """Returns the name of a class: its text without white space around; of a number that is whole, without a point."""
    value = _scalar(value, place)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{place}: the label is {value}, which names no class. Remove the line, or fill it.")
        value = int(value) if value.is_integer() else value
    name = str(value).strip()
    check_characters(name, f"{place}: the label")
    return name


def _number(value, place):
    """Returns a number that float32 can hold."""
    try:  # Python takes 1_000 for a number, which in a file is rather a slip
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _GREATEST_NUMBER:
        raise InputError(
            f"{place}: the label {_shown(str(value))!r} is no finite number up to {_GREATEST_NUMBER:.2g}, as regression "
            "needs it: -0.5 or 1e3, say."
        )
    return number


def is_label(word, objective, class_names, text_format):
    """Returns whether a word is what a label of known classes looks like, or of regression.

    Args:
        word: string.
        objective: `single_label`, `multi_label` or `regression`.
        class_names: tuple of the classes.
        text_format: `TextFormat`.
    """
    try:
        label = _label(word, objective, text_format, "")
    except InputError:
        return False
    return objective == "regression" or set(_names(label)) <= {*class_names}


def _names(label):
    """Returns the classes of one label of `LabelledTexts`."""
    return (label,) if isinstance(label, str) else label


def _shown(text):
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _listed(names):
    """Returns names for a message; not all of them if there are many, long ones cut."""
    names = [_shown(str(name)) for name in names]
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _did_you_mean(word, allowed):
    near = difflib.get_close_matches(str(word), [str(choice) for choice in allowed], n=2)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def suspected_headers(texts):
    """Returns the rows that begin a file and whose classes no other row names: a header may have been taken for a row.

    Args:
        texts: `LabelledTexts` whose labels are classes.
    """
    counts = collections.Counter(name for label in texts.labels for name in _names(label))
    beginnings = np.flatnonzero(np.diff(texts.file_numbers, prepend=-1)).tolist()
    return [row for row in beginnings if {counts[name] for name in _names(texts.labels[row])} == {1}]


def find_class_names(labels):
    """Returns the classes that labels name, sorted: by number where all are whole numbers, else by text.

    Args:
        labels: `LabelledTexts.labels`, which are no numbers.
    """
    names = {name for label in labels for name in _names(label)}

    def is_whole(name):
        return name.removeprefix("-").isascii() and name.removeprefix("-").isdigit()

    if all(map(is_whole, names)):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def label_numbers(texts, class_names, objective, known_from):
    """Turns labels into numbers.

    Args:
        texts: `LabelledTexts` with labels.
        class_names: tuple of the classes, in order; of no use for `regression`.
        objective: as it was read with.
        known_from: where the class names are from, for messages.

    Returns:
        `[texts]` int32 (`single_label`), `[texts, classes]` uint8 of 0 and 1 (`multi_label`), or `[texts]` float32
        (`regression`).

    Raises:
        InputError: naming the file, the line and the label that is none of the classes.
    """
    if objective == "regression":
        return np.array(texts.labels, np.float32)
    numbers = {name: number for number, name in enumerate(class_names)}
    rows = [_names(label) for label in texts.labels]
    for row, names in enumerate(rows):
        for name in names:
            if name not in numbers:
                raise InputError(
                    f"{texts.place(row)}: the label {_shown(name)!r} is none of the classes, which {known_from} has as "
                    f"{_listed(class_names)}.{_did_you_mean(name, class_names)}"
                )
    if objective == "single_label":
        return np.array([numbers[name] for name in texts.labels], np.int32)
    result = np.zeros((len(texts), len(class_names)), np.uint8)
    for row, names in enumerate(rows):
        result[row, [numbers[name] for name in names]] = 1
    return result
