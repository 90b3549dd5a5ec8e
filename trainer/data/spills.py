"""Spills: the tokenized documents of one unit of work, in a section for each shard they go to.

A spill lies in the work folder until its documents are in shards. Layout, little endian: a table of the sections
(uint64 offset, uint64 length, uint64 CRC-32C each), the sections, information in JSON, its length (uint64). A section
holds the numbers of documents, sentences and tokens (3 x uint64), a hash of each document (16 bytes), sentences of each
document (uint32), tokens of each sentence (uint32), and the token ids.

Where near-duplicates are looked for, sections of entries follow, one a partition (see `near_duplicates`).

A unit that is too large to be held in memory has several spills: parts, and a last one that says how many there are.
"""

import concurrent.futures
import dataclasses
import json
import struct

import google_crc32c
import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.errors import StorageFailed

HASH_BYTES = 16
_ENTRY = struct.Struct("<QQQ")
_READERS = 16  # threads; they wait for storage


@dataclasses.dataclass(frozen=True)
class Section:
    """Documents of one unit for one shard.

    Attributes:
        hashes: `[documents, 16]` uint8.
        document_sentences: `[documents]` uint32.
        sentence_lengths: `[sentences]` uint32, none 0.
        token_ids: `[tokens]` uint16 or uint32.
    """

    hashes: object
    document_sentences: object
    sentence_lengths: object
    token_ids: object


class SectionBuilder:
    """Collects documents for a section."""

    def __init__(self):
        self._hashes, self._sentences, self._lengths, self._ids = [], [], [], []

    def add(self, document_hash, sentence_lengths, token_ids):
        """Adds a document."""
        self._hashes.append(document_hash)
        self._sentences.append(len(sentence_lengths))
        self._lengths.append(sentence_lengths)
        self._ids.append(token_ids)

    def content(self, id_bytes):
        """Returns the bytes of the section; nothing if it has no documents."""
        if not self._hashes:
            return b""
        lengths = np.concatenate(self._lengths).astype("<u4")
        ids = np.concatenate(self._ids).astype(f"<u{id_bytes}")
        sizes = struct.pack("<QQQ", len(self._hashes), len(lengths), len(ids))
        sentences = np.array(self._sentences, "<u4")
        return b"".join((sizes, *self._hashes, sentences.tobytes(), lengths.tobytes(), ids.tobytes()))


def part_path(path, number):
    """Returns where a part of a unit's spill lies, the spill itself being at `path`."""
    return f"{path}.{number:04d}"


def paths_of_unit(path, information):
    """Returns the paths of all spills of a unit, in the order of its documents; the last is `path`."""
    return [*(part_path(path, number) for number in range(information["parts"])), path]


def write_spill(path, sections, information):
    """Writes a spill atomically.

    Args:
        path: where.
        sections: list of bytes of each section, one a shard.
        information: JSON-able dictionary to keep with it.
    """
    offset = len(sections) * _ENTRY.size
    table = []
    for section in sections:
        table.append(_ENTRY.pack(offset, len(section), google_crc32c.value(section)))
        offset += len(section)
    content = json.dumps(information).encode("utf-8")
    with storage.atomic_writer(path) as file:
        for part in (*table, *sections, content, struct.pack("<Q", len(content))):
            file.write(part)


def read_information(path):
    """Returns the information kept with a spill; None if there is no whole spill."""
    try:
        size = storage.size(path)
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(size - 8)
            (length,) = struct.unpack("<Q", file.read(8))
            file.seek(size - 8 - length)
            return json.loads(file.read(length))
    except (tf.errors.OpError, ValueError, struct.error):
        return None


def read_information_of_all(folder, paths):
    """Returns the information of each of many spills, which all lie in a folder; None for those that are not there.

    Args:
        folder: their folder, listed once, as asking a remote storage for every file would take minutes.
        paths: list of paths.
    """
    there = set(storage.listing(folder))
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        return list(
            readers.map(lambda path: read_information(path) if path.rsplit("/", 1)[-1] in there else None, paths)
        )


def read_contents(path, first, count):
    """Reads the bytes of sections that follow each other in a spill.

    Args:
        path: the spill.
        first, count: the place of the first section and the number of them.

    Returns:
        List of the bytes of each.

    Raises:
        StorageFailed: if they are not those that were written.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(first * _ENTRY.size)
            table = list(_ENTRY.iter_unpack(file.read(count * _ENTRY.size)))
            start, length = table[0][0], sum(entry[1] for entry in table)
            if not length:
                return [b""] * count
            file.seek(start)
            content = memoryview(file.read(length))
    except (tf.errors.OpError, struct.error, IndexError) as error:
        raise StorageFailed(f"cannot read {path}: {error}") from error
    sections = []
    for offset, length, checksum in table:
        section = bytes(content[offset - start : offset - start + length])
        if len(section) != length or google_crc32c.value(section) != checksum:
            raise StorageFailed(f"{path} is damaged at byte {offset:,}. Delete it and run the same command again.")
        sections.append(section)
    return sections


def read_content(path, number):
    """Reads the bytes of one section of a spill, see `read_contents`."""
    return read_contents(path, number, 1)[0]


def parse_section(content, id_bytes):
    """Returns the `Section` that the bytes of a section hold.

    Args:
        content: bytes, not empty.
        id_bytes: bytes of a token id.
    """
    documents, sentences, tokens = struct.unpack_from("<QQQ", content)
    place = 24
    hashes = np.frombuffer(content, np.uint8, documents * HASH_BYTES, place).reshape(documents, HASH_BYTES)
    place += documents * HASH_BYTES
    document_sentences = np.frombuffer(content, "<u4", documents, place)
    place += documents * 4
    sentence_lengths = np.frombuffer(content, "<u4", sentences, place)
    place += sentences * 4
    return Section(hashes, document_sentences, sentence_lengths, np.frombuffer(content, f"<u{id_bytes}", tokens, place))
