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
from trainer.data.filters import DocumentFilters
from trainer.data.manifests import Shard
from trainer.data.near_duplicates import Bands, dropped_documents
from trainer.data.records import RowFormat, encode_rows, frame_records
from trainer.data.tokenization import Normaliser, Tokenizer
from trainer.data.vocabulary import load_vocabulary

_BATCH_CHARACTERS = 1 << 18  # of text tokenized at once: enough to make the cost of a call vanish
_MOST_WORDS_OF_A_UNIT = 300_000
_SPILL_TOKENS = 1 << 25  # held in memory; a unit with more (a large gzipped file) gets several spills
_SPILL_ENTRY_BYTES = 1 << 26  # the same for the entries by which near-duplicates are found
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
        filters: `DocumentFilters`.
    """

    unit: Unit
    options: ReadingOptions
    lower_case: bool
    most_characters: int
    filters: DocumentFilters = dataclasses.field(default_factory=DocumentFilters)


def count_words(job):
    """Counts the words of a unit.

    Args:
        job: `CountingJob`.

    Returns:
        Dictionary from normalised word to count; of very many words, the most frequent.
    """
    counts, normaliser, batch, size, read = collections.Counter(), Normaliser(job.lower_case), [], 0, 0
    for lines in _kept_documents(job, collections.Counter()):
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


def _kept_documents(job, dropped):
    """Yields the documents of a job's unit that its filters keep; counts the others by reason in `dropped`."""
    for lines in read_documents(job.unit, job.options):
        reason = job.filters.reason_to_drop(lines) if job.filters.active else None
        if reason is None:
            yield lines
        else:
            dropped[reason] += 1


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

    @property
    def num_shards(self):
        """Number of all shards."""
        return self.train_shards + self.held_out_shards

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
        filters: `DocumentFilters`.
        bands: `near_duplicates.Bands`; None where near-duplicates are kept.
        vocabulary: path of the vocabulary.
        lower_case: see `Tokenizer`.
        sentences: whether sentences are needed.
        id_bytes: bytes of a token id.
        assignment: `Assignment`.
        spill: path to write, after those of `spills.parts` if the unit is large.
    """

    unit: Unit
    options: ReadingOptions
    filters: DocumentFilters
    bands: Bands | None
    vocabulary: str
    lower_case: bool
    sentences: bool
    id_bytes: int
    assignment: Assignment
    spill: str


@functools.lru_cache(maxsize=1)
def _vocabulary_of(path, checksum):
    """The vocabulary of this process; the checksum belongs to the key because the file may be another by now."""
    del checksum
    return load_vocabulary(path)


def _vocabulary(path):
    return _vocabulary_of(path, storage.file_checksum(path))


@functools.lru_cache(maxsize=1)
def _tokenizer(vocabulary, lower_case):
    """The tokenizer of this process."""
    return Tokenizer(vocabulary, lower_case)


class _UnitSpills:
    """The spills of a unit that is being tokenized; written part by part where it is too large for memory.

    Args:
        job: `TokenizingJob`.
    """

    def __init__(self, job):
        self._job, self.parts = job, 0
        self._clear()

    def _clear(self):
        self._sections = [spills.SectionBuilder() for _ in range(self._job.assignment.num_shards)]
        self._entries = [[] for _ in range(self._job.bands.num_partitions)] if self._job.bands else []
        self._tokens, self._entry_bytes = 0, 0

    def add(self, shard, document_hash, sentence_lengths, token_ids):
        """Adds a document."""
        self._sections[shard].add(document_hash, sentence_lengths, token_ids)

    def end_batch(self, hashes, lengths, token_ids):
        """Adds what finds near-duplicates of a batch of documents, and writes a part if enough is held in memory.

        Args:
            hashes, lengths: lists of the hash and the number of tokens of each document, none 0.
            token_ids: of all of them.
        """
        self._tokens += len(token_ids)
        if self._job.bands and hashes:
            for of_partition, entries in zip(
                self._entries, self._job.bands.entries(hashes, token_ids, lengths), strict=True
            ):
                of_partition.append(entries.tobytes())
                self._entry_bytes += entries.nbytes
        if self._tokens >= _SPILL_TOKENS or self._entry_bytes >= _SPILL_ENTRY_BYTES:
            self._write(spills.part_path(self._job.spill, self.parts), {})
            self._clear()
            self.parts += 1

    def finish(self, information):
        """Writes the last spill, with the information."""
        self._write(self._job.spill, information)

    def _write(self, path, information):
        sections = [section.content(self._job.id_bytes) for section in self._sections]
        spills.write_spill(path, sections + [b"".join(each) for each in self._entries], information)


def tokenize_unit(job):
    """Tokenizes a unit into a spill.

    Args:
        job: `TokenizingJob`.

    Returns:
        The information in the spill: `documents`, `tokens`, `unknown_tokens`, `text_bytes`, `held_out_documents`,
        `dropped` (by the filters, a dictionary from reason to number), `smallest_hash` (first 64 bits),
        `documents_sha256` (of all document hashes) and `parts` (spills before it).
    """
    tokenizer = _tokenizer(_vocabulary(job.vocabulary), job.lower_case)
    totals = {"documents": 0, "tokens": 0, "unknown_tokens": 0, "text_bytes": 0, "held_out_documents": 0}
    spill, dropped, smallest, digest = _UnitSpills(job), collections.Counter(), None, hashlib.sha256()
    for hashes, lengths, sentences, ids in _tokenized_batches(job, tokenizer, totals, dropped):
        totals["unknown_tokens"] += int(np.count_nonzero(ids == tokenizer.vocabulary.unknown_id))
        sentence, token, kept, kept_lengths = 0, 0, [], []
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
            spill.add(shard, document_hash, of_document[of_document > 0], ids[begin:token])
            upper = int.from_bytes(document_hash[:8], "big")
            smallest = upper if smallest is None else min(smallest, upper)
            totals["documents"] += 1
            totals["tokens"] += tokens
            totals["held_out_documents"] += shard >= job.assignment.train_shards
            digest.update(document_hash)
            kept.append(document_hash)
            kept_lengths.append(tokens)
        spill.end_batch(kept, kept_lengths, ids)
    information = totals | {
        "dropped": dict(dropped),
        "smallest_hash": smallest,
        "documents_sha256": digest.hexdigest(),
        "parts": spill.parts,
    }
    spill.finish(information)
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


def _tokenized_batches(job, tokenizer, totals, dropped):
    """Yields documents, many at a time: hashes, tokens of each sentence, sentences of each document, token ids."""
    hashes, lines, counts, size = [], [], [], 0
    for document in _kept_documents(job, dropped):
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
        source: what the documents are read from, see `merging`.
        near_duplicates: what is read of the spills that `near_duplicates.find_near_duplicates` wrote; None if it was not
            asked to.
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
    source: object
    near_duplicates: object
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
        Dictionary with `shard` (the fields of `manifests.Shard`) and the counts `documents`, `duplicates`,
        `near_duplicates`, `tokens` (of the documents), `row_tokens` (not padding) and `rows`.
    """
    documents, duplicates, near_duplicates = _gather(job)
    vocabulary = _vocabulary(job.vocabulary)
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
        "near_duplicates": near_duplicates,
        "tokens": len(documents.token_ids),
        "row_tokens": int(rows.num_tokens.sum()),
        "rows": len(rows),
    }
    storage.write_json(job.result, result)
    return result


def _gather(job):
    """The documents of a shard in their final order, and how many duplicates and near-duplicates were left out."""
    sections = [spills.parse_section(content, job.row_format.id_bytes) for content in job.source.contents(job.number)]
    hashes = np.concatenate([section.hashes for section in sections] or [np.zeros((0, spills.HASH_BYTES), np.uint8)])
    order = np.arange(len(hashes))
    if not job.keep_duplicates:
        _, first = np.unique(hashes.view("V16")[:, 0], return_index=True)
        order = np.sort(first)
    duplicates = len(hashes) - len(order)
    if job.near_duplicates is not None:
        dropped = dropped_documents(job.near_duplicates, job.number)
        order = order[np.array([hashes[place].tobytes() not in dropped for place in order], bool)]
    near_duplicates = len(hashes) - len(order) - duplicates
    if not len(order):
        none = np.zeros(0, np.int64)
        empty = packing.Documents(none.astype(f"<u{job.row_format.id_bytes}"), none, none)
        return empty, duplicates, near_duplicates
    if job.shuffle:
        words = np.ascontiguousarray(hashes).view(np.uint64)
        factor = np.uint64(packing.Draws(job.seed, job.number).bits() | 1)
        with np.errstate(over="ignore"):
            mixed = (words[:, 0] ^ (words[:, 1] >> np.uint64(7))) * factor
        order = order[np.lexsort((words[order, 1], words[order, 0], mixed[order]))]
    return _documents_in_order(sections, order), duplicates, near_duplicates


def _documents_in_order(sections, order):
    """The documents of sections as `packing.Documents`, those at the places `order` among all of them."""
    token_ids, sentence_lengths, document_sentences = [], [], []
    for section in sections:
        ends = np.cumsum(section.document_sentences)
        sentence_ends = np.cumsum(section.sentence_lengths)
        token_ids += np.split(section.token_ids, sentence_ends[ends - 1][:-1])
        sentence_lengths += np.split(section.sentence_lengths, ends[:-1])
        document_sentences.append(section.document_sentences)
    chosen = order.tolist()
    return packing.Documents(
        token_ids=np.concatenate([token_ids[place] for place in chosen]),
        sentence_lengths=np.concatenate([sentence_lengths[place] for place in chosen]).astype(np.int64),
        document_sentences=np.concatenate(document_sentences)[order].astype(np.int64),
    )


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
