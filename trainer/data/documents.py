"""Documents: the texts of a corpus, read from files (plain text or JSON lines, gzipped or not, local or `gs://`).

The files of a corpus are divided into units of work of about equal size: some small files, or a range of bytes of a
large one. A document belongs to the range in which the separator before it begins, so that the documents of all
units together are those of the files whatever the ranges.
"""

import dataclasses
import gzip
import io
import json
import re

import tensorflow as tf

from trainer import storage
from trainer.errors import InputError, StorageFailed

# A file that nowhere separates documents must not be held in memory as one: longer ones are cut at the end of a line.
LONGEST_DOCUMENT_BYTES = 16 << 20
_SMALLEST_UNIT_BYTES = 1 << 20
_LARGEST_UNIT_BYTES = 64 << 20
_UNITS = 256  # of a corpus between the two limits: enough for many cores, few enough to read back quickly
_BUFFER_BYTES = 1 << 20
_GZIP_RATIO = 3  # gzip packs English text to about a third: an estimate of the size of compressed files

TEXT_SUFFIXES = (".txt", ".jsonl")
INVALID_UTF8 = ("refuse", "replace")


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """How documents are found in files.

    Args:
        text_field: the field of a JSON line that holds the text of a document.
        one_document_per_file: a `.txt` file is one document; otherwise blank lines separate documents.
        document_start: a regular expression: a line in which it matches from the start begins a document, and blank
            lines mean nothing. E.g. `" = [^=]+ = $"` for WikiText.
        invalid_utf8: `refuse` or `replace` (by U+FFFD, which tokenization drops).
    """

    text_field: str = "text"
    one_document_per_file: bool = False
    document_start: str | None = None
    invalid_utf8: str = "refuse"

    def __post_init__(self):
        if self.invalid_utf8 not in INVALID_UTF8:
            raise InputError(f"invalid_utf8 must be one of {', '.join(INVALID_UTF8)}, got {self.invalid_utf8!r}")
        if self.one_document_per_file and self.document_start is not None:
            raise InputError("one_document_per_file and document_start exclude each other: give only one of them.")
        if self.document_start is not None:
            try:
                expression = re.compile(self.document_start)
            except re.error as error:
                raise InputError(f"document_start is no regular expression: {self.document_start!r}: {error}") from None
            if expression.match(""):
                raise InputError(
                    f"document_start {self.document_start!r} matches an empty line, so that every line would begin a "
                    "document. Make it match something, e.g. ' = [^=]+ = $'."
                )


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus: its path, size in bytes, and time of modification in nanoseconds (to notice a change)."""

    path: str
    bytes: int
    modified: int


@dataclasses.dataclass(frozen=True)
class Slice:
    """The documents of a file whose separators begin at bytes `start` to `end` (exclusive; None for the end)."""

    path: str
    start: int = 0
    end: int | None = None


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of work: slices of files, and about how many bytes they hold."""

    slices: tuple
    bytes: int


def find_files(inputs):
    """Finds the files of a corpus.

    Args:
        inputs: paths of files, folders (searched with their subfolders for `.txt` and `.jsonl`, also `.gz`) or
            patterns with `*`, `?` and `[...]`.

    Returns:
        Tuple of `CorpusFile`, in the order of `inputs`, then of names; a file found twice is taken once.

    Raises:
        InputError: if an input matches nothing, or a file has another suffix.
    """
    found = {}
    for given in inputs:
        for path in _matches(str(given)):
            if path not in found:
                found[path] = None
                suffix = path.removesuffix(".gz")
                if not suffix.endswith(TEXT_SUFFIXES):
                    raise InputError(
                        f"cannot tell the format of {path} by its name: it must end in .txt or .jsonl, "
                        "optionally followed by .gz. Rename or convert it."
                    )
    files = []
    for path in found:
        try:
            statistics = tf.io.gfile.stat(path)
        except tf.errors.OpError as error:
            raise InputError(f"cannot read {path}: {error.message}") from error
        files.append(CorpusFile(path, statistics.length, statistics.mtime_nsec))
    return tuple(files)


def _matches(given):
    """The sorted paths of files that an input names."""
    if storage.is_folder(given):
        paths = []
        for folder, _, names in tf.io.gfile.walk(given):
            paths += [storage.join(folder, name) for name in names if name.removesuffix(".gz").endswith(TEXT_SUFFIXES)]
        if not paths:
            raise InputError(f"the folder {given} holds no .txt or .jsonl files (nor .gz of them), also not deeper.")
        return sorted(paths)
    if storage.exists(given):
        return [given]
    paths = sorted(path for path in tf.io.gfile.glob(given) if not storage.is_folder(path))
    if not paths:
        raise InputError(f"no file or folder is named, and no file matches, {given!r}. Look for a misspelling.")
    return paths


def text_bytes(files):
    """Returns about how many bytes of text files hold."""
    return sum(file.bytes * (_GZIP_RATIO if file.path.endswith(".gz") else 1) for file in files)


def divide_into_units(files, options):
    """Divides a corpus into units of work; the division depends on the files alone.

    Args:
        files: `CorpusFile`s.
        options: `ReadingOptions`.

    Returns:
        Tuple of `Unit`, in the order of the files.
    """
    size = min(max(text_bytes(files) // _UNITS, _SMALLEST_UNIT_BYTES), _LARGEST_UNIT_BYTES)
    units, slices, filled = [], [], 0

    def close():
        nonlocal slices, filled
        if slices:
            units.append(Unit(tuple(slices), filled))
        slices, filled = [], 0

    for file in files:
        whole = file.path.endswith(".gz") or (options.one_document_per_file and not _is_json(file.path))
        if whole or file.bytes <= size:
            if filled and filled + text_bytes([file]) > size:
                close()
            slices.append(Slice(file.path))
            filled += text_bytes([file])
            continue
        close()
        for start in range(0, file.bytes, size):
            end = start + size
            units.append(
                Unit((Slice(file.path, start, end if end < file.bytes else None),), min(end, file.bytes) - start)
            )
    close()
    return tuple(units)


def read_documents(unit, options):
    """Reads the documents of a unit.

    Args:
        unit: `Unit`.
        options: `ReadingOptions`.

    Yields:
        Documents, each a list of its lines without white space around them; none is empty.

    Raises:
        InputError: naming the file and the byte that is not UTF-8, or the line that is not JSON.
        StorageFailed: if a file cannot be read.
    """
    for part in unit.slices:
        try:
            with open_bytes(part.path) as file:
                read = _json_documents if _is_json(part.path) else _text_documents
                for text in read(file, part, options):
                    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
                    if lines:
                        yield lines
        except (OSError, EOFError, tf.errors.OpError) as error:  # gzip reports damage as OSError or EOFError
            raise StorageFailed(f"cannot read {part.path}: {error}") from error


def _is_json(path):
    return path.removesuffix(".gz").endswith(".jsonl")


class _RemoteFile(io.RawIOBase):
    """A file of TensorFlow's file systems as a raw Python file, for buffering and decompression."""

    def __init__(self, path):
        super().__init__()
        self._file = tf.io.gfile.GFile(path, "rb")

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self):
        return self._file.tell()

    def readinto(self, buffer):
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self):
        self._file.close()
        super().close()


def open_bytes(path):
    """Opens a file, local or remote, for reading bytes by lines or in blocks; `.gz` files are decompressed."""
    if storage.is_remote(path):
        file = io.BufferedReader(_RemoteFile(path), _BUFFER_BYTES)
    else:
        file = open(path, "rb", buffering=_BUFFER_BYTES)  # noqa: SIM115 (the caller closes it)
    return gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file


def _decode(content, path, offset, options):
    """Decodes the bytes that stand at `offset` of a file (of its decompressed content)."""
    if offset == 0:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{path} looks like UTF-16: convert it to UTF-8, e.g. with `iconv -f UTF-16 -t UTF-8`.")
        content = content.removeprefix(b"\xef\xbb\xbf") if content.startswith(b"\xef\xbb\xbf") else content
    try:
        return content.decode("utf-8", "replace" if options.invalid_utf8 == "replace" else "strict")
    except UnicodeDecodeError as error:
        where = " of its decompressed content" if path.endswith(".gz") else ""
        bad = content[error.start : error.start + 4].hex(" ")
        raise InputError(
            f"{path} is not UTF-8: byte {offset + error.start:,}{where} ({bad}): {error.reason}. Convert the file, or "
            "accept a replacement character there with --invalid_utf8 replace."
        ) from None


def _lines_from(file, part):
    """Yields (offset, line) of the lines that begin in or after a slice, without end."""
    offset = 0
    if part.start:
        # The line in which the byte before `start` lies belongs to the slice before.
        file.seek(part.start - 1)
        offset = part.start - 1 + len(file.readline())
    for line in file:
        yield offset, line
        offset += len(line)


def _text_documents(file, part, options):
    """Yields the texts of a slice of a plain text file."""
    if options.one_document_per_file:
        yield _decode(file.read(), part.path, 0, options)
        return
    pattern = None if options.document_start is None else re.compile(options.document_start.encode("utf-8"))
    skipping = part.start > 0
    lines, start, size = [], 0, 0
    for offset, line in _lines_from(file, part):
        if pattern is None:
            separates = line.isspace()
        else:
            separates = pattern.match(line.rstrip(b"\r\n")) is not None
        if separates:
            if lines:
                yield _decode(b"".join(lines), part.path, start, options)
                lines, size = [], 0
            if part.end is not None and offset >= part.end:
                return
            skipping = False
            if pattern is None:
                continue
        if skipping:
            continue
        if size + len(line) > LONGEST_DOCUMENT_BYTES and lines:
            yield _decode(b"".join(lines), part.path, start, options)
            lines, size = [], 0
        if not lines:
            start = offset
        lines.append(line)
        size += len(line)
    if lines:
        yield _decode(b"".join(lines), part.path, start, options)


def _json_documents(file, part, options):
    """Yields the texts of a slice of a file of JSON lines."""
    for offset, line in _lines_from(file, part):
        if part.end is not None and offset >= part.end:
            return
        if line.isspace():
            continue
        text = _decode(line, part.path, offset, options)
        try:
            record = json.loads(text)
        except ValueError as error:
            raise InputError(f"{part.path} holds a line that is not JSON at byte {offset:,}: {error}") from None
        value = record.get(options.text_field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            fields = ", ".join(sorted(record)) if isinstance(record, dict) else f"a {type(record).__name__}, no object"
            raise InputError(
                f"{part.path} has no text in the field {options.text_field!r} of the line at byte {offset:,}; it has: "
                f"{fields or 'no fields'}. Name the field that holds the text with --text_field."
            )
        # A JSON string may hold half of a surrogate pair, which no UTF-8 can: as if it were a replacement character.
        yield value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
