"""Rows from TFRecords that Google BERT's `create_pretraining_data.py` wrote.

Those records differ in length, so a file is scanned once for where each begins (and whether its checksums hold), and
the result is kept in a small file beside it. From then on lanes read such files like prepared ones.
"""

import dataclasses
import functools
import io
import logging
import re
import struct

import google_crc32c
import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.data.records import masked_crc
from trainer.data.stored_rows import FileRows, check_in_graph
from trainer.errors import InputError, StorageFailed

_TOKEN_FEATURES = ("input_ids", "input_mask", "segment_ids")
_MASK_FEATURES = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
_LABEL_FEATURE = "next_sentence_labels"
_INDEX_SUFFIX = ".rows.npz"
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_CHUNK_BYTES = 64 << 20
_MAX_RECORD_BYTES = 1 << 28  # more than any real record: a length field above it is not one


@dataclasses.dataclass(frozen=True)
class FileIndex:
    """Where the records of one file are.

    Attributes:
        path: the file.
        bytes: its size when it was scanned.
        modified_nanoseconds: its time of modification then.
        crc32c: CRC-32C of the file, eight hexadecimal digits.
        offsets: `[records + 1]` int64, where each record begins, and the end of the file.
        sequence_length: tokens in a row.
        predictions_per_row: slots for masked tokens in a row.
    """

    path: str
    bytes: int
    modified_nanoseconds: int
    crc32c: str
    offsets: np.ndarray
    sequence_length: int
    predictions_per_row: int


@dataclasses.dataclass(frozen=True)
class GoogleBertCorpus:
    """TFRecord files of Google BERT's pretraining examples, with the masks that were drawn when they were written.

    Args:
        train: path or glob of the training files (or several, separated by commas), local or `gs://`.
        weight: share of the training examples, relative to the weights of the other corpora.
        held_out: the same for evaluation; None if there are none.
        vocabulary_size: pieces in the vocabulary the files were made with; token ids are checked against it.
        remask: puts the original tokens back and leaves the stored masks out, so that masks can be drawn afresh.
        index_folder: where the indexes are kept; None keeps each beside its file.
    """

    train: str
    weight: float = 1.0
    held_out: str | None = None
    vocabulary_size: int | None = None
    remask: bool = False
    index_folder: str | None = None

    @property
    def label(self):
        """What messages call this corpus."""
        return self.train

    @functools.cache  # noqa: B019  a run has a handful of corpora, which live as long as it does
    def indexes(self, split):
        """Returns the `FileIndex` of each file of a split, in the order of names.

        Raises:
            InputError: if no file matches, or one is damaged or holds something else.
        """
        pattern = {"train": self.train, "held_out": self.held_out}.get(split)
        if not pattern:
            raise InputError(f"{self.label} has no files for the split {split!r}: set {split} to the path of some.")
        paths = sorted({path for part in pattern.split(",") for path in tf.io.gfile.glob(part.strip())})
        paths = [path for path in paths if not path.endswith(_INDEX_SUFFIX)]
        if not paths:
            raise InputError(f"no file matches {pattern!r}: give the path or glob of the TFRecord files.")
        return tuple(file_index(path, self.index_folder) for path in paths)

    @property
    def sequence_length(self):
        """Tokens in a row."""
        return self.indexes("train")[0].sequence_length

    @property
    def fingerprint(self):
        """Text that changes when the content of a training file does."""
        return " ".join(index.crc32c for index in self.indexes("train"))

    @staticmethod
    def stored_rows(corpora, split):
        """Returns the rows of a split of several such corpora, as `GoogleBertRows`."""
        return GoogleBertRows(corpora, split)

    @staticmethod
    def check(corpora, *, vocabulary_sha256, checksums):
        """Indexes all files, which reads and verifies those that are new; see `corpora.check_corpora`."""
        for corpus in corpora:
            for split in ("train", "held_out") if corpus.held_out else ("train",):
                if checksums is True:
                    for index in corpus.indexes(split):
                        scan_records(index.path)
                GoogleBertRows([corpus], split)
        GoogleBertRows(corpora, "train")


class GoogleBertRows(FileRows):
    """Rows in the format of Google BERT's `create_pretraining_data.py`.

    Args:
        corpora: `GoogleBertCorpus`es.
        split: `train` or `held_out`.

    Raises:
        InputError: if files are missing or damaged, or hold rows of different sizes.
    """

    def __init__(self, corpora, split):
        indexes = [(number, index) for number, corpus in enumerate(corpora) for index in corpus.indexes(split)]
        first = indexes[0][1]
        for _, index in indexes:
            sizes = (index.sequence_length, index.predictions_per_row)
            if sizes != (first.sequence_length, first.predictions_per_row):
                raise InputError(
                    f"{index.path} has rows of {sizes[0]} tokens and {sizes[1]} predictions, {first.path} of "
                    f"{first.sequence_length} and {first.predictions_per_row}. Make them with the same max_seq_length "
                    "and max_predictions_per_seq, or use them in separate runs."
                )
        for corpus in corpora[1:]:
            for name in ("vocabulary_size", "remask"):
                if getattr(corpus, name) != getattr(corpora[0], name):
                    raise InputError(
                        f"{corpus.label} has {name} {getattr(corpus, name)}, {corpora[0].label} "
                        f"{getattr(corpora[0], name)}: all corpora of a run need the same."
                    )
        self.sequence_length, self.predictions_per_row = first.sequence_length, first.predictions_per_row
        self.vocabulary_size, self.remask = corpora[0].vocabulary_size, corpora[0].remask
        rows = [len(index.offsets) - 1 for _, index in indexes]
        super().__init__(
            labels=[corpus.label for corpus in corpora],
            paths=[index.path for _, index in indexes],
            shard_corpus=[number for number, _ in indexes],
            shard_rows=rows,
            shard_bytes=[index.bytes for _, index in indexes],
            shard_compressed=[False] * len(indexes),
            shard_crc32c=[index.crc32c for _, index in indexes],
            row_bytes=max(1, sum(index.bytes for _, index in indexes) // max(1, sum(rows))),
        )
        self._offsets = np.concatenate([index.offsets for _, index in indexes])
        self._first_offset = np.cumsum([0] + [len(index.offsets) for _, index in indexes])[:-1]

    def tensors(self):
        """See `StoredRows.tensors`; 8 bytes a row for the offsets."""
        return super().tensors() | {
            "offsets": tf.constant(self._offsets),
            "first_offset": tf.constant(self._first_offset, tf.int64),
        }

    def byte_range(self, tensors, shard, first_row, num_rows):
        """See `FileRows.byte_range`."""
        place = tensors["first_offset"][shard] + first_row
        offset = tensors["offsets"][place]
        return offset, tensors["offsets"][place + num_rows] - offset

    def verify(self, tensors, records, shard, first_row):
        """See `FileRows.verify`: serialized examples, whose checksums TensorFlow has compared when reading."""
        place = tensors["first_offset"][shard] + first_row + tf.range(tf.size(records, tf.int64) + 1)
        offsets = tf.gather(tensors["offsets"], place)
        expected_bytes = offsets[1:] - offsets[:-1] - _HEADER_BYTES - _FOOTER_BYTES
        return records, tf.equal(tf.cast(tf.strings.length(records), tf.int64), expected_bytes)

    def record_boundary(self, shard, offset):
        """See `FileRows.record_boundary`."""
        first = self._first_offset[shard]
        offsets = self._offsets[first : first + self.shard_rows[shard] + 1]
        return bool(offsets[np.searchsorted(offsets, offset)] == offset) if offset <= offsets[-1] else False

    def decode(self, records):
        """See `StoredRows.decode`; every row is one document, and stored masks are kept unless `remask`."""
        length, predictions = self.sequence_length, self.predictions_per_row
        features = {name: tf.io.FixedLenFeature([length], tf.int64) for name in _TOKEN_FEATURES}
        features |= {name: tf.io.FixedLenFeature([predictions], tf.int64) for name in _MASK_FEATURES[:2]}
        features[_MASK_FEATURES[2]] = tf.io.FixedLenFeature([predictions], tf.float32)
        features[_LABEL_FEATURE] = tf.io.FixedLenFeature([1], tf.int64)
        parsed = tf.io.parse_example(records, features)
        parsed = {
            name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value for name, value in parsed.items()
        }
        token_ids, checks = parsed["input_ids"], []
        if self.vocabulary_size is not None:
            largest = tf.maximum(tf.reduce_max(token_ids), tf.reduce_max(parsed["masked_lm_ids"]))
            lowest = tf.minimum(tf.reduce_min(token_ids), tf.reduce_min(parsed["masked_lm_ids"]))
            message = [", ".join(self.labels), " hold token ids from ", lowest, " to ", largest, ", but the vocabulary"]
            message += [
                f" has {self.vocabulary_size} pieces: they were made with another one. Set vocabulary_size, and"
            ]
            message += [" use the vocabulary that the files were made with."]
            checks = [check_in_graph((lowest >= 0) & (largest < self.vocabulary_size), message)]
        with tf.control_dependencies(checks):
            token_ids = tf.identity(token_ids)
        masks = {
            "masked_positions": parsed["masked_lm_positions"],
            "masked_ids": parsed["masked_lm_ids"],
            "masked_weights": parsed["masked_lm_weights"],
        }
        if self.remask:
            token_ids = original_token_ids(token_ids, **masks)
        columns = {
            "token_ids": token_ids,
            "segment_ids": parsed["segment_ids"],
            "document_ids": parsed["input_mask"],
            "pair_labels": parsed[_LABEL_FEATURE][:, 0],
        }
        return columns if self.remask else columns | masks


def original_token_ids(token_ids, masked_positions, masked_ids, masked_weights):
    """Puts the original tokens back where masks were drawn.

    Args:
        token_ids: `[rows, length]` int32, with masks.
        masked_positions, masked_ids: `[rows, predictions]` int32, where tokens were masked and which they were.
        masked_weights: `[rows, predictions]` float32, 0 for slots that are not used.

    Returns:
        `[rows, length]` int32.
    """
    num_rows, length = tf.shape(token_ids)[0], tf.shape(token_ids)[1]
    # Slots that are not used point behind the row, into a column that is cut off again.
    positions = tf.where(masked_weights > 0, masked_positions, length)
    rows = tf.broadcast_to(tf.range(num_rows)[:, None], tf.shape(positions))
    wider = tf.pad(token_ids, [[0, 0], [0, 1]])
    restored = tf.tensor_scatter_nd_update(wider, tf.stack([rows, positions], axis=-1), masked_ids)
    return tf.ensure_shape(restored[:, :-1], token_ids.shape)


def file_index(path, index_folder=None):
    """Returns the index of a file: the stored one if the file is as it was, or a new one, which it stores.

    Args:
        path: a TFRecord file.
        index_folder: where indexes are kept; None keeps it beside the file.

    Raises:
        InputError: if the file is damaged or holds something else.
    """
    status = tf.io.gfile.stat(path)
    name = path if index_folder is None else storage.join(index_folder, re.sub(r"[^\w.-]+", "_", path))
    index_path = name + _INDEX_SUFFIX
    if storage.exists(index_path):
        try:
            with np.load(io.BytesIO(storage.read_bytes(index_path))) as stored:
                index = FileIndex(
                    path=path,
                    bytes=int(stored["bytes"]),
                    modified_nanoseconds=int(stored["modified_nanoseconds"]),
                    crc32c=str(stored["crc32c"]),
                    offsets=stored["offsets"],
                    sequence_length=int(stored["sequence_length"]),
                    predictions_per_row=int(stored["predictions_per_row"]),
                )
            if (index.bytes, index.modified_nanoseconds) == (status.length, status.mtime_nsec):
                return index
        except (ValueError, KeyError, OSError, EOFError):
            logging.warning("the index %s is damaged: making it again", index_path)
    offsets, crc32c = scan_records(path)
    sequence_length, predictions_per_row = _sizes_of_rows(path, offsets)
    index = FileIndex(path, status.length, status.mtime_nsec, crc32c, offsets, sequence_length, predictions_per_row)
    content = io.BytesIO()
    np.savez(content, **{name: value for name, value in vars(index).items() if name != "path"})
    try:
        if index_folder is not None:
            storage.make_folder(index_folder)
        storage.write_bytes(index_path, content.getvalue())
    except (StorageFailed, tf.errors.OpError, OSError) as error:
        logging.warning("the index of %s is not kept, so each start scans the file again: %s", path, error)
    return index


def scan_records(path):
    """Reads a TFRecord file to its end and compares every checksum.

    Args:
        path: the file.

    Returns:
        (`[records + 1]` int64: where each record begins, and the end of the file; the file's CRC-32C in hexadecimal).

    Raises:
        InputError: if it is not a TFRecord file, or damaged or truncated.
    """
    offsets, start, rest, file_crc = [0], 0, b"", 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            file_crc = google_crc32c.extend(file_crc, chunk)
            rest, position = rest + chunk, 0
            while len(rest) - position >= _HEADER_BYTES:
                length, length_crc = struct.unpack_from("<QI", rest, position)
                if length > _MAX_RECORD_BYTES or masked_crc(rest[position : position + 8]) != length_crc:
                    raise InputError(_not_records(path, start + position, rest[:2]))
                end = position + _HEADER_BYTES + length
                if end + _FOOTER_BYTES > len(rest):
                    break
                (crc,) = struct.unpack_from("<I", rest, end)
                if masked_crc(rest[position + _HEADER_BYTES : end]) != crc:
                    raise InputError(
                        f"{path} is damaged: record {len(offsets) - 1:,} at byte {start + position:,} fails its "
                        "checksum. Copy the file again."
                    )
                position = end + _FOOTER_BYTES
                offsets.append(start + position)
            start, rest = start + position, rest[position:]
    if rest:
        raise InputError(f"{path} is truncated: it ends in the middle of record {len(offsets) - 1:,}. Copy it again.")
    if len(offsets) == 1:
        raise InputError(f"{path} is empty: it holds no record.")
    return np.array(offsets, np.int64), f"{file_crc:08x}"


def _not_records(path, offset, first_bytes):
    """The message for a file whose framing does not hold at a byte."""
    if offset:
        return f"{path} is damaged: no record begins at byte {offset:,}, where one should. Copy the file again."
    if first_bytes == b"\x1f\x8b":
        return f"{path} is gzipped: the reader seeks in it, so decompress it first (gunzip)."
    return f"{path} is not a TFRecord file: no record begins it. Give the output of create_pretraining_data.py."


def _sizes_of_rows(path, offsets):
    """Returns (sequence length, predictions per row) of the first record, or raises InputError if it is no such."""
    with tf.io.gfile.GFile(path, "rb") as file:
        record = file.read(int(offsets[1]))[_HEADER_BYTES:-_FOOTER_BYTES]
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise InputError(
            f"{path} holds records that are not tf.train.Example: give the output of create_pretraining_data.py."
        ) from error
    sizes = {}
    for name in (*_TOKEN_FEATURES, *_MASK_FEATURES, _LABEL_FEATURE):
        kind = "float_list" if name == _MASK_FEATURES[2] else "int64_list"
        if name not in features or features[name].WhichOneof("kind") != kind:
            raise InputError(
                f"{path} holds examples without {name} ({kind}); they have {', '.join(sorted(features)) or 'nothing'}. "
                "Give the output of Google BERT's create_pretraining_data.py."
            )
        sizes[name] = len(getattr(features[name], kind).value)
    for names in (_TOKEN_FEATURES, _MASK_FEATURES):
        if len({sizes[name] for name in names}) > 1:
            found = ", ".join(f"{name} {sizes[name]}" for name in names)
            raise InputError(f"{path} holds examples whose features differ in size: {found}. Make the file again.")
    return sizes["input_ids"], sizes["masked_lm_ids"]
