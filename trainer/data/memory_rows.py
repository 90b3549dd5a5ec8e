"""Rows in memory: small data sets that a run makes when it starts, read in the same order as stored ones.

Columns are kept as bytes, a row a record, in one tensor; reading a run of rows is a slice of it. That needs no Python in
the pipeline, so it also works on the hosts of a TPU slice, and a million rows of 128 tokens take about 260 MB.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from trainer.data.stored_rows import StoredRows
from trainer.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryCorpus:
    """Rows in memory, and their share among several corpora.

    Args:
        label: what messages call this corpus.
        splits: `{split: {column: [rows, ...] NumPy array}}`, each column of one small number type.
        expand: what turns the columns into those of a batch, in TensorFlow operations, for any number of rows:
            `{column: tensor}` in and out; None for the columns as they are. With `token_ids` and `document_ids` among
            what comes out, `evaluation_dataset` can pad.
        weight: share of the training examples, relative to the weights of the other corpora.
    """

    label: str
    splits: dict
    expand: object = None
    weight: float = 1.0

    @staticmethod
    def stored_rows(corpora, split):
        """Returns the rows of a split of several such corpora, as `MemoryRows`."""
        return MemoryRows(corpora, split)


class MemoryRows(StoredRows):
    """The rows of a split of `MemoryCorpus`es; each is one shard.

    Args:
        corpora: `MemoryCorpus`es of the same columns.
        split: which of their splits.

    Raises:
        InputError: if a corpus lacks the split.
    """

    def __init__(self, corpora, split):
        for corpus in corpora:
            if split not in corpus.splits:
                raise InputError(
                    f"{corpus.label} holds no rows of the split {split!r}; it has {', '.join(corpus.splits) or 'none'}."
                )
        parts = [corpus.splits[split] for corpus in corpora]
        self._columns = {name: (column.dtype, column.shape[1:]) for name, column in parts[0].items()}
        for corpus, part in zip(corpora, parts, strict=True):
            if {name: (column.dtype, column.shape[1:]) for name, column in part.items()} != self._columns:
                raise InputError(f"{corpus.label} and {corpora[0].label} have rows of different columns.")
        self._expand = corpora[0].expand
        self._records = np.concatenate([_records(part) for part in parts])
        super().__init__(
            labels=[corpus.label for corpus in corpora],
            paths=[corpus.label for corpus in corpora],
            shard_corpus=np.arange(len(corpora)),
            shard_rows=[len(next(iter(part.values()))) for part in parts],
            row_bytes=self._records.shape[1],
        )

    def tensors(self):
        """See `StoredRows.tensors`."""
        starts = np.cumsum(self.shard_rows) - self.shard_rows
        return super().tensors() | {"records": tf.constant(self._records), "starts": tf.constant(starts)}

    def read(self, tensors, shard, first_row, num_rows):
        """See `StoredRows.read`: `[num_rows, row_bytes]` uint8."""
        start = tensors["starts"][shard] + first_row
        return tensors["records"][start : start + num_rows]

    def decode(self, records):
        """See `StoredRows.decode`."""
        columns, start = {}, 0
        for name, (dtype, shape) in self._columns.items():
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            part = records[:, start : start + size]
            start += size
            if dtype.itemsize > 1:
                part = tf.bitcast(tf.reshape(part, [-1, size // dtype.itemsize, dtype.itemsize]), dtype)
            columns[name] = tf.reshape(part, [-1, *shape])
        return columns if self._expand is None else self._expand(columns)


def _records(columns):
    """Returns `[rows, row_bytes]` uint8: the bytes of all columns of a row, one column after the other."""
    parts = [np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8) for column in columns.values()]
    return np.concatenate(parts, axis=1)
