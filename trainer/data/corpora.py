"""Corpora: the prepared data sets of a run, whether they fit together, and their rows for reading."""

import dataclasses
import functools
import hashlib

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.data.manifests import load_manifest, verify_data_set
from trainer.data.records import decode_rows_in_graph, rows_are_intact
from trainer.data.stored_rows import FileRows
from trainer.errors import InputError

# Up to here every byte is compared before training: a gigabyte takes about a second to read from a local disk.
_FULL_CHECK_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A data set made by `tools.prepare_data`, and its share among several.

    Args:
        folder: the folder that holds `manifest.json`, local or `gs://`.
        weight: share of the training examples, relative to the weights of the other corpora.
        cached_in: local folder in which copies of shards may lie, or appear, which are then read instead; None for none.
    """

    folder: str
    weight: float = 1.0
    cached_in: str | None = None

    @functools.cached_property
    def manifest(self):
        """The `Manifest`, read once.

        Raises:
            InputError: if there is none, or it is damaged.
        """
        return load_manifest(self.folder)

    @property
    def label(self):
        """What messages call this corpus."""
        return str(self.folder)

    @property
    def sequence_length(self):
        """Tokens in a row."""
        return self.manifest.sequence_length

    @staticmethod
    def stored_rows(corpora, split):
        """Returns the rows of a split of several such corpora, as `PreparedRows`."""
        return PreparedRows(corpora, split)

    @staticmethod
    def check(corpora, *, vocabulary_sha256, checksums):
        """See `check_corpora`."""
        _check_prepared(corpora, vocabulary_sha256, checksums)


class PreparedRows(FileRows):
    """Rows in the format of `trainer.data.records`.

    Args:
        corpora: `Corpus`es.
        split: `train` or `held_out`.

    Raises:
        InputError: if a corpus lacks the split, or the corpora hold rows of different layouts.
    """

    def __init__(self, corpora, split):
        shards = []
        for number, corpus in enumerate(corpora):
            if not corpus.manifest.splits.get(split) or not corpus.manifest.rows(split):
                filled = [name for name in corpus.manifest.splits if corpus.manifest.rows(name)]
                raise InputError(
                    f"{corpus.folder} holds no rows of the split {split!r}; it has {', '.join(filled) or 'none'}. "
                    "Prepare the data again with such a split, or leave this corpus out."
                )
            shards += [(number, corpus, shard) for shard in corpus.manifest.splits[split]]
        _check_same_layout(corpora)
        self.row_format = corpora[0].manifest.row_format
        super().__init__(
            labels=[corpus.label for corpus in corpora],
            paths=[storage.join(corpus.folder, shard.name) for _, corpus, shard in shards],
            shard_corpus=[number for number, _, _ in shards],
            shard_rows=[shard.rows for _, _, shard in shards],
            shard_bytes=[shard.bytes for _, _, shard in shards],
            shard_compressed=[corpus.manifest.compression == "GZIP" for _, corpus, _ in shards],
            row_bytes=self.row_format.stride,
            shard_crc32c=[shard.crc32c for _, _, shard in shards],
            local_paths=[
                corpus.cached_in and storage.join(corpus.cached_in, shard.name) for _, corpus, shard in shards
            ],
        )
        self._salts = np.array([shard.salt for _, _, shard in shards], np.int64)
        for path, rows, size, compressed in zip(
            self.paths, self.shard_rows, self.shard_bytes, self.shard_compressed, strict=True
        ):
            if not compressed and size != rows * self.row_bytes:
                raise InputError(
                    f"the manifest is damaged: it says that shard {path} has {size:,} bytes, but its {rows:,} rows "
                    f"take {rows * self.row_bytes:,}. Prepare the data again."
                )

    def tensors(self):
        """See `StoredRows.tensors`."""
        return super().tensors() | {"salts": tf.constant(self._salts)}

    def byte_range(self, tensors, shard, first_row, num_rows):
        """See `FileRows.byte_range`: every row has the same stride."""
        return first_row * self.row_bytes, num_rows * self.row_bytes

    def verify(self, tensors, records, shard, first_row):
        """See `FileRows.verify`: `[rows, record_bytes]` uint8 records, each with a hash that also knows its place."""
        size = self.row_format.record_bytes
        whole = tf.strings.length(records) == size
        records = tf.cond(
            tf.reduce_all(whole),
            lambda: tf.io.decode_raw(records, tf.uint8),
            lambda: tf.zeros([tf.size(records), size], tf.uint8),
        )
        records = tf.ensure_shape(records, [None, size])
        hashes_match = rows_are_intact(self.row_format, records, tensors["salts"][shard], first_row)
        return records, tf.logical_and(whole, hashes_match)

    def record_boundary(self, shard, offset):
        """See `FileRows.record_boundary`."""
        return offset % self.row_bytes == 0

    def decode(self, records):
        """See `StoredRows.decode`: the attributes of `records.Rows`, all int32."""
        rows = decode_rows_in_graph(self.row_format, records)
        return {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}


def stored_rows_of(corpora, split):
    """Returns the rows of a split of all corpora, which must be of one kind.

    Args:
        corpora: `Corpus`es, `google_bert.GoogleBertCorpus`es or `memory_rows.MemoryCorpus`es; one or more.
        split: `train` or `held_out`.

    Returns:
        `StoredRows`.

    Raises:
        InputError: if there is no corpus, the kinds are mixed, or the corpora do not fit together.
    """
    corpora = tuple(corpora)
    return _kind_of(corpora).stored_rows(corpora, split)


def _kind_of(corpora):
    """Returns the class of all corpora, or raises InputError."""
    if not corpora:
        raise InputError("no corpus is given: name at least one folder of prepared data.")
    if len({type(corpus) for corpus in corpora}) > 1:
        raise InputError(
            f"{corpora[0].label} and {next(c.label for c in corpora if type(c) is not type(corpora[0]))} are of "
            "different kinds: prepared data and Google BERT's TFRecords cannot be mixed in one run. "
            "Prepare the text of both with `python -m tools.prepare_data`."
        )
    return type(corpora[0])


def _check_same_layout(corpora):
    """Raises InputError unless all corpora have rows of one length over one vocabulary."""
    first = corpora[0]
    for corpus in corpora[1:]:
        if corpus.manifest.sequence_length != first.manifest.sequence_length:
            raise InputError(
                f"{corpus.folder} has rows of {corpus.manifest.sequence_length} tokens, {first.folder} of "
                f"{first.manifest.sequence_length}. Prepare them with the same sequence_length."
            )
        if corpus.manifest.vocabulary_sha256 != first.manifest.vocabulary_sha256:
            raise InputError(
                f"{corpus.folder} and {first.folder} were prepared with different vocabularies "
                f"({corpus.manifest.vocabulary_size:,} and {first.manifest.vocabulary_size:,} pieces, SHA-256 "
                f"{corpus.manifest.vocabulary_sha256[:12]} and {first.manifest.vocabulary_sha256[:12]}). Prepare one "
                "of them again with the other's vocabulary."
            )
        if corpus.manifest.id_bytes != first.manifest.id_bytes:
            raise InputError(
                f"{corpus.folder} stores ids in {corpus.manifest.id_bytes} bytes, {first.folder} in "
                f"{first.manifest.id_bytes}. Prepare one of them again."
            )


def check_corpora(corpora, *, sequence_length=None, vocabulary_sha256=None, checksums="auto"):
    """Compares data with its manifest or index, with one another and with the run; call it before training.

    Args:
        corpora: `Corpus`es or `GoogleBertCorpus`es.
        sequence_length: tokens in a row that the run expects; None takes what the data has.
        vocabulary_sha256: SHA-256 of the vocabulary file that the run's tokenizer uses; None takes the data's.
        checksums: whether to read all shards and compare their checksums; `"auto"` does so below a gigabyte, and
            otherwise looks at names and sizes (every row is verified again when it is read).

    Raises:
        InputError: naming the shard that is missing, extra, truncated or altered, or what does not fit.
    """
    corpora = tuple(corpora)
    for corpus in corpora:
        if sequence_length is not None and corpus.sequence_length != sequence_length:
            raise InputError(
                f"{corpus.label} has rows of {corpus.sequence_length} tokens, the run expects {sequence_length}. "
                f"Set the run's sequence length to {corpus.sequence_length} or prepare the data again."
            )
    _kind_of(corpora).check(corpora, vocabulary_sha256=vocabulary_sha256, checksums=checksums)


def _check_prepared(corpora, vocabulary_sha256, checksums):
    """What `check_corpora` does with prepared data."""
    for corpus in corpora:
        manifest = corpus.manifest
        if vocabulary_sha256 is not None and manifest.vocabulary_sha256 != vocabulary_sha256:
            raise InputError(
                f"{corpus.folder} was prepared with another vocabulary than the run's: its {manifest.vocabulary} has "
                f"{manifest.vocabulary_size:,} pieces and SHA-256 {manifest.vocabulary_sha256[:12]}, the run's SHA-256 "
                f"is {vocabulary_sha256[:12]}. Use {storage.join(corpus.folder, manifest.vocabulary)} or prepare the "
                "data again."
            )
    _check_same_layout(corpora)
    for corpus in corpora:
        manifest = corpus.manifest
        path = storage.join(corpus.folder, manifest.vocabulary)
        if not storage.exists(path):
            raise InputError(f"the vocabulary {path} is missing: the manifest names it. Copy it again.")
        found = hashlib.sha256(storage.read_bytes(path)).hexdigest()
        if found != manifest.vocabulary_sha256:
            raise InputError(
                f"the vocabulary {path} is altered: its SHA-256 is {found[:12]}, the manifest says "
                f"{manifest.vocabulary_sha256[:12]}. Its pieces no longer belong to the ids in the rows: copy it again."
            )
        total = sum(shard.bytes for shards in manifest.splits.values() for shard in shards)
        full = total < _FULL_CHECK_BYTES if checksums == "auto" else checksums
        verify_data_set(corpus.folder, manifest, checksums=full)
