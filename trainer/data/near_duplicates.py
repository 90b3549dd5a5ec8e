"""Near-duplicates: documents that share most of their text with another document, found by MinHash.

- A document is the set of its shingles: its runs of five tokens. Two documents resemble each other as much as the Jaccard
  similarity of these sets.
- Its signature has 128 values, each the smallest of one hash function over the shingles (Broder 1997): the share of equal
  values in two signatures estimates the similarity, with a standard error of 0.04 or less.
- Signatures are cut into bands (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4): documents that agree
  in a band share a bucket, and only those are compared. A band is so wide that documents as similar as the threshold meet
  in nine of ten cases at least, more similar ones nearly always.
- A document is dropped if one with a smaller key, in a bucket with it, is as similar as the threshold. The key is the hash
  of the text, so this depends neither on the order of the corpus nor on how it is divided, and held-out documents, which
  have the smallest keys, stay while what resembles them leaves the training data.

Buckets are spread over partitions, through spills as documents are over shards, and every partition is searched by itself.
Of a bucket with more than 64 documents (boilerplate, say) the 64 with the smallest keys are those that all are compared
with, which bounds time and memory.

NumPy on the token ids, because the library datasketch (2.0) makes a signature from 1.6 million shingles a second, this from
40 million (one core, 128 values), and shingles as strings, which it wants, take as long again to make.
"""

import dataclasses
import math

import numpy as np

from trainer.data import spills
from trainer.data.packing import Draws
from trainer.errors import InputError

SIGNATURE_LENGTH = 128
_SHINGLE_TOKENS = 5
_MEETING_PROBABILITY = 0.9  # of documents as similar as the threshold
_MOST_COMPARED = 64  # documents of a bucket
_ENTRIES_HELD = 1 << 18  # 40 MB: beyond it, what a bucket holds too much is thrown away while reading
_LOWEST_THRESHOLD = 0.5  # below it, bands of one or two values would bring most documents together

# A document in one band. Of a signature's values 8 bits are kept; unequal ones then seem equal once in 256 times.
ENTRY = np.dtype(
    [("bucket", "<u8"), ("key_high", ">u8"), ("key_low", ">u8"), ("signature", np.uint8, (SIGNATURE_LENGTH,))]
)
_CHANCE = 1 / 256


def _constants(purpose, count, bits):
    """Fixed random odd numbers."""
    draws = Draws(0x6E656172, purpose)
    return np.array([draws.bits() >> (64 - bits) | 1 for _ in range(count)], f"u{bits // 8}")


_TOKEN_FACTORS = _constants(0, _SHINGLE_TOKENS, 64)
_FACTORS = _constants(1, SIGNATURE_LENGTH, 32)
_OFFSETS = _constants(2, SIGNATURE_LENGTH, 32)
_BAND_FACTORS = _constants(3, SIGNATURE_LENGTH, 64)


def check_threshold(threshold):
    """Raises `InputError` if a similarity is no threshold that works."""
    if not _LOWEST_THRESHOLD <= threshold <= 1:
        raise InputError(
            f"near_duplicates is a similarity from {_LOWEST_THRESHOLD} to 1, got {threshold}; 0.8 is a usual one."
        )


def signatures(token_ids, lengths):
    """Makes the MinHash signatures of documents.

    Args:
        token_ids: `[tokens]` integers, of all documents one after the other.
        lengths: `[documents]` number of tokens of each, none 0. A document shorter than a shingle has one shingle.

    Returns:
        `[documents, SIGNATURE_LENGTH]` uint32.
    """
    lengths = np.asarray(lengths, np.int64)
    shingles = _shingles(np.asarray(token_ids), lengths)
    counts = np.maximum(lengths - _SHINGLE_TOKENS + 1, 1)
    first = np.cumsum(counts) - counts
    result = np.empty((len(lengths), SIGNATURE_LENGTH), np.uint32)
    with np.errstate(over="ignore"):
        for number, (factor, offset) in enumerate(zip(_FACTORS, _OFFSETS, strict=True)):
            result[:, number] = np.minimum.reduceat(shingles * factor + offset, first)
    return result


def _shingles(token_ids, lengths):
    """The 32-bit hashes of all shingles of documents, one after the other."""
    room = np.maximum(lengths, _SHINGLE_TOKENS)  # documents that are too short are padded with zeros
    shift = (np.cumsum(room) - room) - (np.cumsum(lengths) - lengths)
    padded = np.zeros(room.sum() + _SHINGLE_TOKENS - 1, np.uint64)
    padded[np.arange(len(token_ids)) + np.repeat(shift, lengths)] = token_ids.astype(np.uint64) + np.uint64(1)
    with np.errstate(over="ignore"):
        hashes = sum(padded[k : k + room.sum()] * factor for k, factor in enumerate(_TOKEN_FACTORS))
    hashes = (hashes >> np.uint64(32)).astype(np.uint32)
    inside = np.ones(len(hashes), bool)  # not those that reach into the next document
    ends = np.cumsum(room)
    for before in range(1, _SHINGLE_TOKENS):
        inside[ends - before] = False
    return _mixed(hashes[inside])


def _mixed(words):
    """The last steps of MurmurHash3 on 32-bit words."""
    with np.errstate(over="ignore"):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
    return words ^ (words >> np.uint32(16))


@dataclasses.dataclass(frozen=True)
class Bands:
    """How signatures become entries in buckets.

    Args:
        threshold: similarity from which on a document is a near-duplicate.
        num_partitions: over which the buckets are spread; it changes nothing in the result.
    """

    threshold: float
    num_partitions: int

    @property
    def rows(self):
        """Values in a band: the most with which documents as similar as the threshold are still likely to meet."""
        return max(
            rows
            for rows in range(1, SIGNATURE_LENGTH + 1)
            if rows == 1 or 1 - (1 - self.threshold**rows) ** (SIGNATURE_LENGTH // rows) >= _MEETING_PROBABILITY
        )

    @property
    def least_equal(self):
        """Equal 8-bit values from which on the estimated similarity reaches the threshold."""
        share = self.threshold + (1 - self.threshold) * _CHANCE
        return math.ceil(share * SIGNATURE_LENGTH - 1e-9)

    def entries(self, hashes, token_ids, lengths):
        """Makes the entries of documents.

        Args:
            hashes: list of the hash of each document's text, 16 bytes.
            token_ids, lengths: see `signatures`.

        Returns:
            List with an array of `ENTRY` for each partition.
        """
        values = signatures(token_ids, lengths)
        keys = np.frombuffer(b"".join(hashes), ">u8").reshape(-1, 2)
        rows = self.rows
        result = np.empty((SIGNATURE_LENGTH // rows, len(hashes)), ENTRY)
        with np.errstate(over="ignore"):
            for band in range(len(result)):
                places = slice(band * rows, (band + 1) * rows)
                buckets = values[:, places].astype(np.uint64) @ _BAND_FACTORS[places] + _BAND_FACTORS[band]
                result[band]["bucket"] = (buckets ^ (buckets >> np.uint64(32))) * _BAND_FACTORS[0]
            result["signature"] = (values * np.uint32(0x9E3779B1)) >> np.uint32(24)
        result["key_high"], result["key_low"] = keys[:, 0], keys[:, 1]
        result = result.reshape(-1)
        partitions = (result["bucket"] >> np.uint64(32)) * np.uint64(self.num_partitions) >> np.uint64(32)
        order = np.argsort(partitions, kind="stable")
        ends = np.cumsum(np.bincount(partitions.astype(np.int64), minlength=self.num_partitions))
        return np.split(result[order], ends[:-1])


@dataclasses.dataclass(frozen=True)
class PartitionJob:
    """A partition to search for near-duplicates.

    Args:
        section: of the spills that holds the partition's entries.
        source: what the sections are read from, see `merging`.
        least_equal: see `Bands`.
        assignment: `preparation_work.Assignment`.
        path: where to write the hashes of the documents to drop: a spill with a section for each shard.
    """

    section: int
    source: object
    least_equal: int
    assignment: object
    path: str


def find_near_duplicates(job):
    """Finds the documents of a partition to drop and writes their hashes.

    Args:
        job: `PartitionJob`.

    Returns:
        The information in the spill: `documents`, how many they are.
    """
    compared = _compared(job)
    dropped = set()
    for entries in _entries(job):
        found = entries[_resembles_smaller(entries, compared, job.least_equal)]
        dropped.update(_key_bytes(found))
    sections = [[] for _ in range(job.assignment.num_shards)]
    for key in sorted(dropped):
        sections[job.assignment.shard(key)].append(key)
    information = {"documents": len(dropped)}
    spills.write_spill(job.path, [b"".join(section) for section in sections], information)
    return information


def dropped_documents(source, shard):
    """Returns the set of hashes of the documents of a shard that are near-duplicates.

    Args:
        source: what the sections of the spills of all partitions are read from, see `merging`.
        shard: its number.
    """
    size = spills.HASH_BYTES
    contents = source.contents(shard)
    return {content[place : place + size] for content in contents for place in range(0, len(content), size)}


def _entries(job):
    """Yields the entries of a partition, spill by spill."""
    for content in job.source.contents(job.section):
        yield np.frombuffer(content, ENTRY)


def _key_bytes(entries):
    keys = np.stack([entries["key_high"], entries["key_low"]], axis=1).astype(">u8").tobytes()
    return [keys[place : place + spills.HASH_BYTES] for place in range(0, len(keys), spills.HASH_BYTES)]


def _compared(job):
    """The entries that others are compared with: the smallest keys of every bucket that several documents share."""
    held, waiting, count, limit = np.zeros(0, ENTRY), [], 0, _ENTRIES_HELD
    for entries in _entries(job):
        waiting.append(entries)
        count += len(entries)
        if count >= limit:
            held, waiting, count = _smallest(np.concatenate([held, *waiting])), [], 0
            limit = max(_ENTRIES_HELD, len(held))
    held = _smallest(np.concatenate([held, *waiting]))
    same = held["bucket"][1:] == held["bucket"][:-1]
    shared = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    return held[shared[: len(held)]]


def _smallest(entries):
    """The documents with the smallest keys of each bucket, each once, sorted by bucket and key."""
    bucket, high, low = (entries[name].astype(np.uint64) for name in ("bucket", "key_high", "key_low"))
    order = np.lexsort((low, high, bucket))
    bucket, high, low = bucket[order], high[order], low[order]
    same_bucket = np.concatenate([[False], bucket[1:] == bucket[:-1]])[: len(bucket)]
    repeated = same_bucket.copy()
    repeated[1:] &= (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    order, first = order[~repeated], ~same_bucket[~repeated]
    starts = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return entries[order[rank < _MOST_COMPARED]]


def _resembles_smaller(entries, compared, least_equal):
    """Which entries are as similar as asked to one of a smaller key in their bucket: `[entries]` booleans."""
    result = np.zeros(len(entries), bool)
    buckets = compared["bucket"].astype(np.uint64)
    start, end = (np.searchsorted(buckets, entries["bucket"], side) for side in ("left", "right"))
    undecided = np.flatnonzero(start < end)
    place = start[undecided]
    while len(undecided):
        one, other = entries[undecided], compared[place]
        smaller = (other["key_high"] < one["key_high"]) | (
            (other["key_high"] == one["key_high"]) & (other["key_low"] < one["key_low"])
        )
        equal = np.count_nonzero(one["signature"] == other["signature"], axis=1)
        similar = smaller & (equal >= least_equal)
        result[undecided[similar]] = True
        # Keys rise within a bucket: after one that is not smaller none is.
        place += 1
        goes_on = smaller & ~similar & (place < end[undecided])
        undecided, place = undecided[goes_on], place[goes_on]
    return result
