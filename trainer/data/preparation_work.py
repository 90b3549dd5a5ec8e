"""The work of data preparation that is done in parallel: counting words, tokenizing units, making shards."""

import collections
import dataclasses
import functools
import gzip
import hashlib
import re

import google_crc32c
import numpy as np

from trainer import storage
from trainer.data import packing, python_docs, spills
from trainer.data.documents import ReadingOptions, Unit, read_documents
from trainer.data.manifests import Shard
from trainer.data.records import RowFormat, encode_rows, frame_records
from trainer.data.tokenization import Normaliser, Tokenizer
from trainer.data.vocabulary import load_vocabulary

_BATCH_CHARACTERS = 1 << 18  # of text tokenized at once: enough to make the cost of a call vanish
_MOST_WORDS_OF_A_UNIT = 300_000
_SPILL_TOKENS = 1 << 25  # held in memory; a unit with more (a large gzipped file) gets several spills
_ROWS_AT_ONCE = 16384
# The end of a sentence: a mark, perhaps a closing quote or bracket, then white space and what may begin a sentence; or
# a full-width mark, which no space follows. It begins with a set of characters, which the search finds quickly.
_SENTENCE_END = re.compile(
    r"""[.!?。！？](?:(?<=[.!?])["'”’)\]]?\s+(?=["'“‘(\[]*[^\W_a-z\d])|(?<=[。！？])[”’」』）]?)"""
)


@dataclasses.dataclass(frozen=True)
class ExtractionJob:
    """Source files whose docstrings to write to a file."""

    part: tuple
    path: str


def extract_documentation(job):
    """Writes the documents of a part of the python_docs corpus as JSON lines.

    Args:
        job: `ExtractionJob`.
    """
    storage.write_text(job.path, python_docs.extract(job.part))


@dataclasses.dataclass(frozen=True)
class CountingJob:
    """A unit whose words to count.

    Args:
        unit: `Unit`.
        options: `ReadingOptions`.
        lower_case: see `Tokenizer`.
        most_characters: of text to read; a gzipped file may hold far more.
    """

    unit: Unit
    options: ReadingOptions
    lower_case: bool
    most_characters: int


def count_words(job):
    """Counts the words of a unit.

    Args:
        job: `CountingJob`.

    Returns:
        Dictionary from normalised word to count; of very many words, the most frequent.
    """
    counts, normaliser, batch, size, read = collections.Counter(), Normaliser(job.lower_case), [], 0, 0
    for lines in read_documents(job.unit, job.options):
        batch += lines
        size += sum(map(len, lines))
        if size >= _BATCH_CHARACTERS:
            counts.update(normaliser.words("\n".join(batch)))
            batch, size, read = [], 0, read + size
            if read >= job.most_characters:
                break
    counts.update(normaliser.words("\n".join(batch)))
    if len(counts) > _MOST_WORDS_OF_A_UNIT:
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_WORDS_OF_A_UNIT])
    return dict(counts)


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Which shard a document goes to, by the hash of its text.

    Args:
        held_out_below: documents whose hash (its first 64 bits) is below this are held out.
        train_shards: number of training shards; they have the first numbers.
        held_out_shards: number of held-out shards.
    """

    held_out_below: int
    train_shards: int
    held_out_shards: int

    def shard(self, document_hash):
        """Returns the number of the shard."""
        upper = int.from_bytes(document_hash[:8], "big")
        lower = int.from_bytes(document_hash[8:], "big")
        if upper < self.held_out_below:
            return self.train_shards + lower % self.held_out_shards
        return lower % self.train_shards


@dataclasses.dataclass(frozen=True)
class TokenizingJob:
    """A unit to tokenize into a spill.

    Args:
        unit: `Unit`.
        options: `ReadingOptions`.
        vocabulary: path of the vocabulary.
        lower_case: see `Tokenizer`.
        sentences: whether sentences are needed.
        id_bytes: bytes of a token id.
        assignment: `Assignment`.
        spill: path to write, after those of `spills.parts` if the unit is large.
    """

    unit: Unit
    options: ReadingOptions
    vocabulary: str
    lower_case: bool
    sentences: bool
    id_bytes: int
    assignment: Assignment
    spill: str


@functools.lru_cache(maxsize=1)
def _tokenizer(vocabulary, sha256, lower_case):
    """The tokenizer of this process; the hash belongs to the key because the file may be another by now."""
    del sha256
    return Tokenizer(load_vocabulary(vocabulary), lower_case)


def tokenize_unit(job):
    """Tokenizes a unit into a spill.

    Args:
        job: `TokenizingJob`.

    Returns:
        The information in the spill: `documents`, `tokens`, `unknown_tokens`, `text_bytes`, `held_out_documents`,
        `smallest_hash` (first 64 bits), `documents_sha256` (of all document hashes) and `parts` (spills before it).
    """
    tokenizer = _tokenizer(job.vocabulary, load_vocabulary(job.vocabulary).sha256, job.lower_case)
    num_shards, parts, held_tokens = job.assignment.train_shards + job.assignment.held_out_shards, 0, 0

    def empty_sections():
        return [spills.SectionBuilder() for _ in range(num_shards)]

    def write(path, information):
        spills.write_spill(path, [section.content(job.id_bytes) for section in sections], information)

    sections = empty_sections()
    totals = {"documents": 0, "tokens": 0, "unknown_tokens": 0, "text_bytes": 0, "held_out_documents": 0}
    smallest, digest = None, hashlib.sha256()
    for hashes, lengths, sentences, ids in _tokenized_batches(job, tokenizer, totals):
        totals["unknown_tokens"] += int(np.count_nonzero(ids == tokenizer.vocabulary.unknown_id))
        sentence, token = 0, 0
        for document_hash, count in zip(hashes, sentences, strict=True):
            of_document = lengths[sentence : sentence + count]
            sentence += count
            tokens = int(of_document.sum())
            begin, token = token, token + tokens
            if not tokens:
                continue  # nothing but characters that tokenization drops
            if not job.sentences:
                of_document = np.array([tokens])
            shard = job.assignment.shard(document_hash)
            sections[shard].add(document_hash, of_document[of_document > 0], ids[begin:token])
            upper = int.from_bytes(document_hash[:8], "big")
            smallest = upper if smallest is None else min(smallest, upper)
            totals["documents"] += 1
            totals["tokens"] += tokens
            totals["held_out_documents"] += shard >= job.assignment.train_shards
            digest.update(document_hash)
        held_tokens += len(ids)
        if held_tokens >= _SPILL_TOKENS:
            write(spills.part_path(job.spill, parts), {})
            sections, parts, held_tokens = empty_sections(), parts + 1, 0
    information = totals | {"smallest_hash": smallest, "documents_sha256": digest.hexdigest(), "parts": parts}
    write(job.spill, information)
    return information


def split_sentences(line):
    """Splits a line of text into sentences, by simple rules that err on the side of fewer sentences."""
    sentences, begin = [], 0
    for end in _SENTENCE_END.finditer(line):
        sentences.append(line[begin : end.end()].strip())
        begin = end.end()
    if begin < len(line):
        sentences.append(line[begin:].strip())
    return sentences


def _tokenized_batches(job, tokenizer, totals):
    """Yields documents, many at a time: hashes, tokens of each sentence, sentences of each document, token ids."""
    hashes, lines, counts, size = [], [], [], 0
    for document in read_documents(job.unit, job.options):
        text = "\n".join(document).encode("utf-8")
        totals["text_bytes"] += len(text)
        hashes.append(hashlib.blake2b(text, digest_size=spills.HASH_BYTES).digest())
        if job.sentences:
            document = [sentence for line in document for sentence in split_sentences(line)]
        lines += document
        counts.append(len(document))
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            ids, lengths = tokenizer.tokenize(lines)
            yield hashes, lengths, counts, ids.astype(f"<u{job.id_bytes}")
            hashes, lines, counts, size = [], [], [], 0
    if hashes:
        ids, lengths = tokenizer.tokenize(lines)
        yield hashes, lengths, counts, ids.astype(f"<u{job.id_bytes}")


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """A shard to make from the spills.

    Args:
        number: of the shard among all.
        name: of its file.
        folder: where it goes.
        result: path of the JSON file that says that it is finished.
        spill_paths: of all units, in order.
        vocabulary: path of the vocabulary.
        row_format: `RowFormat`.
        packing_mode: one of `packing.MODES`.
        short_rows: see `packing.pack_sentence_pairs`.
        seed: integer.
        keep_duplicates: whether a document may come more than once.
        shuffle: whether documents come in an order of their own instead of the corpus's.
        compress: whether to gzip.
        salt: of the shard's row hashes.
    """

    number: int
    name: str
    folder: str
    result: str
    spill_paths: tuple
    vocabulary: str
    row_format: RowFormat
    packing_mode: str
    short_rows: float
    seed: int
    keep_duplicates: bool
    shuffle: bool
    compress: bool
    salt: int


def make_shard(job):
    """Packs the documents of a shard and writes it.

    Args:
        job: `ShardJob`.

    Returns:
        Dictionary with `shard` (the fields of `manifests.Shard`) and the counts `documents`, `duplicates`, `tokens` (of
        the documents), `row_tokens` (not padding) and `rows`.
    """
    documents, duplicates = _gather(job)
    vocabulary = load_vocabulary(job.vocabulary)
    special = packing.SpecialIds(vocabulary.classification_id, vocabulary.separator_id, vocabulary.continues_word)
    length = job.row_format.sequence_length
    if job.packing_mode == "full_sentences":
        rows = packing.pack_full_sentences(documents, length, special)
    else:
        rows = packing.pack_sentence_pairs(
            documents,
            length,
            special,
            mode=job.packing_mode,
            seed=job.seed,
            shard=job.number,
            short_rows=job.short_rows,
        )
    size, checksum = _write_rows(job, rows)
    result = {
        "shard": dataclasses.asdict(Shard(job.name, len(rows), size, checksum, job.salt)),
        "documents": len(documents),
        "duplicates": duplicates,
        "tokens": len(documents.token_ids),
        "row_tokens": int(rows.num_tokens.sum()),
        "rows": len(rows),
    }
    storage.write_json(job.result, result)
    return result


def _gather(job):
    """The documents of a shard from all spills, in their final order, and how many duplicates were left out."""
    sections = []
    for path in job.spill_paths:
        section = spills.read_section(path, job.number, job.row_format.id_bytes)
        if section is not None:
            sections.append(section)
    id_type = f"<u{job.row_format.id_bytes}"
    if not sections:
        none = np.zeros(0, np.int64)
        return packing.Documents(none.astype(id_type), none, none), 0
    hashes = np.concatenate([section.hashes for section in sections])
    order = np.arange(len(hashes))
    if not job.keep_duplicates:
        _, first = np.unique(hashes.view("V16")[:, 0], return_index=True)
        order = np.sort(first)
    if job.shuffle:
        words = np.ascontiguousarray(hashes).view(np.uint64)
        factor = np.uint64(packing.Draws(job.seed, job.number).bits() | 1)
        with np.errstate(over="ignore"):
            mixed = (words[:, 0] ^ (words[:, 1] >> np.uint64(7))) * factor
        order = order[np.lexsort((words[order, 1], words[order, 0], mixed[order]))]
    token_ids, sentence_lengths, document_sentences = [], [], []
    for section in sections:
        ends = np.cumsum(section.document_sentences)
        sentence_ends = np.cumsum(section.sentence_lengths)
        token_ids += np.split(section.token_ids, sentence_ends[ends - 1][:-1])
        sentence_lengths += np.split(section.sentence_lengths, ends[:-1])
        document_sentences.append(section.document_sentences)
    chosen = order.tolist()
    documents = packing.Documents(
        token_ids=np.concatenate([token_ids[place] for place in chosen]),
        sentence_lengths=np.concatenate([sentence_lengths[place] for place in chosen]).astype(np.int64),
        document_sentences=np.concatenate(document_sentences)[order].astype(np.int64),
    )
    return documents, len(hashes) - len(order)


class _Measured:
    """A file that is written, with the size and the checksum of what went into it."""

    def __init__(self, file):
        self._file, self.bytes, self._crc = file, 0, 0

    def write(self, content):
        self._file.write(content)
        self.bytes += len(content)
        self._crc = google_crc32c.extend(self._crc, bytes(content))
        return len(content)

    def flush(self):
        """Nothing: the file is flushed when it is closed."""

    @property
    def checksum(self):
        return f"{self._crc:08x}"


def _write_rows(job, rows):
    """Writes the rows of a shard atomically; returns the size and the checksum of the file."""
    with storage.atomic_writer(storage.join(job.folder, job.name)) as file:
        measured = _Measured(file)
        # No time and no name in the gzip header: the same rows give the same bytes.
        target = gzip.GzipFile("", "wb", 6, measured, mtime=0) if job.compress else measured
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            records = encode_rows(
                job.row_format,
                rows.token_ids[part],
                rows.segment_ids[part],
                rows.document_starts[part],
                rows.pair_labels[part],
                rows.num_tokens[part],
                salt=job.salt,
                first_row=first,
            )
            target.write(frame_records(records))
        if job.compress:
            target.close()
    return measured.bytes, measured.checksum
