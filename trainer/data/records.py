"""Rows: the stored form of one training example, of fixed size, in ordinary TFRecord framing.

A shard is an uncompressed (or gzipped) TFRecord file that any tool can read. Every record of a data set has the same
length, so row `i` of a shard starts at byte `i * stride`: a reader seeks instead of reading what it skips.

One record, little endian, for `sequence_length` L:

    uint32              row hash, see `row_hashes`
    uint16              number of tokens that are not padding
    uint16              pair label: 0 or 1, or 65535 for none
    uint16[L] (or uint32[L] where the vocabulary needs it)   token ids
    uint8[ceil(L/8)]    document starts: bit j%8 of byte j//8 is set where a document begins at token j
    uint8[ceil(L/8)]    segment ids, one bit a token
    zeros up to a multiple of 4 bytes

The checksum of the framing finds damaged bytes. A row carries a hash of its own besides, which binds it to its shard
and its place there: a stale, swapped or shifted row is found too.
"""

import dataclasses
import struct

import google_crc32c
import numpy as np
import tensorflow as tf

NO_LABEL = 65535
_HEADER_BYTES = 8
_LENGTH_BYTES = 8  # TFRecord framing: uint64 length, uint32 checksum of it, data, uint32 checksum of the data
_CHECKSUM_BYTES = 4
_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.int32)


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """The layout of a data set's records.

    Args:
        sequence_length: number of tokens in a row, padding included.
        id_bytes: bytes a stored token id takes, 2 or 4.
    """

    sequence_length: int
    id_bytes: int = 2

    def __post_init__(self):
        if self.sequence_length < 4:
            raise ValueError(f"sequence_length must be at least 4, got {self.sequence_length}")
        if self.id_bytes not in (2, 4):
            raise ValueError(f"id_bytes must be 2 or 4, got {self.id_bytes}")

    @classmethod
    def for_vocabulary(cls, sequence_length, vocabulary_size):
        """Returns the most compact format that holds the ids of a vocabulary."""
        return cls(sequence_length, 2 if vocabulary_size <= 65536 else 4)

    @property
    def bits_bytes(self):
        """Bytes of one bitmap over the tokens."""
        return (self.sequence_length + 7) // 8

    @property
    def record_bytes(self):
        """Bytes of a record without the TFRecord framing."""
        size = _HEADER_BYTES + self.sequence_length * self.id_bytes + 2 * self.bits_bytes
        return (size + 3) // 4 * 4

    @property
    def stride(self):
        """Bytes from the start of a framed record to the start of the next in an uncompressed shard."""
        return _LENGTH_BYTES + _CHECKSUM_BYTES + self.record_bytes + _CHECKSUM_BYTES


def _splitmix64(count):
    """The first outputs of SplitMix64 from state 0 (Steele, Lea, Flood 2014), made odd."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def row_hashes(records, salt, first_row):
    """Returns the 32-bit hash of each record: multilinear hashing modulo 2**64, upper half (Lemire and Kaser 2014).

    Args:
        records: `[rows, record_bytes]` uint8; the hash field itself is not read.
        salt: 32-bit number of the shard, from the manifest.
        first_row: index in the shard of the first record.

    Returns:
        `[rows]` uint32.
    """
    words = np.ascontiguousarray(records[:, 4:]).view("<u4").astype(np.uint64)
    factors = _splitmix64(words.shape[1] + 2)
    with np.errstate(over="ignore"):
        rows = np.arange(first_row, first_row + len(records), dtype=np.uint64)
        total = words @ factors[2:] + np.uint64(salt) * factors[0] + rows * factors[1]
    return (total >> np.uint64(32)).astype(np.uint32)


def encode_rows(row_format, token_ids, segment_ids, document_starts, pair_labels, num_tokens, *, salt, first_row):
    """Encodes rows as records.

    Args:
        row_format: the layout.
        token_ids: `[rows, length]` integers, padded with 0.
        segment_ids: `[rows, length]` of 0 and 1.
        document_starts: `[rows, length]` booleans, true at the first token of each document in the row.
        pair_labels: `[rows]` of 0, 1 or `NO_LABEL`.
        num_tokens: `[rows]` number of tokens that are not padding.
        salt: 32-bit number of the shard.
        first_row: index in the shard of the first row.

    Returns:
        `[rows, record_bytes]` uint8.
    """
    rows, length = token_ids.shape
    if length != row_format.sequence_length:
        raise ValueError(f"rows have {length} tokens, the format has {row_format.sequence_length}")
    records = np.zeros((rows, row_format.record_bytes), np.uint8)
    records[:, 4:6] = np.asarray(num_tokens, "<u2").reshape(rows, 1).view(np.uint8)
    records[:, 6:8] = np.asarray(pair_labels, "<u2").reshape(rows, 1).view(np.uint8)
    ids_end = _HEADER_BYTES + length * row_format.id_bytes
    ids = np.ascontiguousarray(token_ids, dtype=f"<u{row_format.id_bytes}")
    records[:, _HEADER_BYTES:ids_end] = ids.view(np.uint8)
    bits = row_format.bits_bytes
    for start, values in ((ids_end, document_starts), (ids_end + bits, segment_ids)):
        records[:, start : start + bits] = np.packbits(np.asarray(values, bool), axis=1, bitorder="little")
    records[:, :4] = row_hashes(records, salt, first_row).astype("<u4").reshape(rows, 1).view(np.uint8)
    return records


def masked_crc(content):
    """Returns the checksum of TFRecord framing as an integer: CRC-32C, rotated right by 15 bits and offset."""
    crc = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame_records(records):
    """Returns the bytes of records in TFRecord framing.

    Args:
        records: `[rows, record_bytes]` uint8.
    """
    length = struct.pack("<Q", records.shape[1])
    header = length + struct.pack("<I", masked_crc(length))
    pieces = []
    for record in records:
        data = record.tobytes()
        pieces += (header, data, struct.pack("<I", masked_crc(data)))
    return b"".join(pieces)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Decoded rows; NumPy arrays or tensors.

    Attributes:
        token_ids: `[rows, length]` int32, 0 where padded.
        segment_ids: `[rows, length]` int32 of 0 and 1 (0 where padded).
        document_ids: `[rows, length]` int32: 1 for the first document of the row, 2 for the next; 0 where padded.
        pair_labels: `[rows]` int32: 0, 1, or -1 for none.
    """

    token_ids: object
    segment_ids: object
    document_ids: object
    pair_labels: object


def decode_rows(row_format, records):
    """Decodes records in NumPy; the reference of `decode_rows_in_graph`.

    Args:
        records: `[rows, record_bytes]` uint8.

    Returns:
        `Rows` of NumPy arrays.
    """
    length, bits = row_format.sequence_length, row_format.bits_bytes
    ids_end = _HEADER_BYTES + length * row_format.id_bytes
    num_tokens = np.ascontiguousarray(records[:, 4:6]).view("<u2").astype(np.int32)
    labels = np.ascontiguousarray(records[:, 6:8]).view("<u2")[:, 0].astype(np.int32)
    token_ids = np.ascontiguousarray(records[:, _HEADER_BYTES:ids_end]).view(f"<u{row_format.id_bytes}")

    def unpack(start):
        return np.unpackbits(records[:, start : start + bits], axis=1, count=length, bitorder="little").astype(np.int32)

    inside = np.arange(length) < num_tokens
    return Rows(
        token_ids=token_ids.astype(np.int32),
        segment_ids=unpack(ids_end + bits),
        document_ids=np.cumsum(unpack(ids_end), axis=1, dtype=np.int32) * inside,
        pair_labels=np.where(labels == NO_LABEL, -1, labels).astype(np.int32),
    )


def rows_are_intact(row_format, records, salt, first_row):
    """Recomputes the row hashes in the graph.

    Args:
        records: `[rows, record_bytes]` uint8 tensor.
        salt: scalar integer tensor, the shard's number.
        first_row: scalar integer tensor, the index in the shard of the first record.

    Returns:
        `[rows]` boolean tensor.
    """
    num_words = row_format.record_bytes // 4
    words = tf.bitcast(tf.reshape(records, [-1, num_words, 4]), tf.uint32)
    factors = _splitmix64(num_words + 1).view(np.int64)
    rows = tf.cast(first_row, tf.int64) + tf.range(tf.shape(records, tf.int64)[0])
    total = tf.linalg.matvec(tf.cast(words, tf.int64), np.concatenate([[0], factors[2:]]))  # without the stored hash
    total += tf.cast(salt, tf.int64) * factors[0] + rows * factors[1]
    upper = tf.bitwise.right_shift(tf.bitcast(total, tf.uint64), tf.constant(32, tf.uint64))
    return tf.equal(tf.cast(upper, tf.int64), tf.cast(words[:, 0], tf.int64))


def decode_rows_in_graph(row_format, records):
    """Decodes records with TensorFlow operations, many rows at a time.

    Args:
        records: `[rows, record_bytes]` uint8 tensor.

    Returns:
        `Rows` of tensors, as `decode_rows`.
    """
    length, bits = row_format.sequence_length, row_format.bits_bytes
    ids_end = _HEADER_BYTES + length * row_format.id_bytes

    def integers(start, end, dtype):
        raw = tf.reshape(records[:, start:end], [-1, (end - start) // dtype.size, dtype.size])
        return tf.cast(tf.bitcast(raw, dtype), tf.int32)

    def look_up(table, start):
        raw = tf.cast(records[:, start : start + bits], tf.int32)
        return tf.gather(tf.constant(table), raw)  # [rows, bytes, 8]

    # Eight tokens at a time: the documents that begin up to each token of a byte, and those of all bytes before.
    starts = look_up(np.cumsum(_BITS_OF_BYTE, axis=1, dtype=np.int32), ids_end)
    before = tf.cast(
        tf.matmul(tf.cast(starts[:, :, 7], tf.float32), np.triu(np.ones((bits, bits), np.float32), 1)), tf.int32
    )
    document_ids = tf.reshape(starts + before[:, :, None], [-1, bits * 8])[:, :length]
    segment_ids = tf.reshape(look_up(_BITS_OF_BYTE, ids_end + bits), [-1, bits * 8])[:, :length]

    header = integers(4, _HEADER_BYTES, tf.uint16)
    inside = tf.cast(tf.range(length)[None] < header[:, :1], tf.int32)
    labels = header[:, 1]
    return Rows(
        token_ids=integers(_HEADER_BYTES, ids_end, tf.uint16 if row_format.id_bytes == 2 else tf.int32),
        segment_ids=segment_ids,
        document_ids=document_ids * inside,
        pair_labels=tf.where(labels == NO_LABEL, -1, labels),
    )
