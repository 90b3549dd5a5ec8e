"""Evaluation rows: every row of a split exactly once, in file order, padded to whole global batches."""

import numpy as np
import tensorflow as tf

from trainer.data.corpora import stored_rows_of
from trainer.data.lanes import check_division, pipeline_options

_MAX_RUN_BYTES = 1 << 20  # read at once
_ROWS_PER_CHUNK = 1024  # decoded at once


def evaluation_dataset(
    corpora,
    *,
    split="held_out",
    global_batch,
    rows_per_element,
    host=0,
    num_hosts=1,
    prefetch=2,
):
    """Returns the rows of a split for one host, each exactly once, then padding without end.

    The rows of all corpora, one after the other, are cut into one contiguous part per host; the last part is padded.
    Which rows share a batch thus depends on the number of hosts, but no result does that is summed over the set.

    Args:
        corpora: `Corpus`es, `GoogleBertCorpus`es or `MemoryCorpus`es; their weights play no part.
        split: the split to read.
        global_batch: rows in a step, over all hosts.
        rows_per_element: rows in an element; must divide `global_batch / num_hosts`.
        host, num_hosts: number of this host and of all.
        prefetch: elements made ahead of being asked for.

    Returns:
        (dataset, number of steps). Elements are as of `lanes.training_dataset`, except that `example_index` is the
        running number of the row in the whole set, and with `example_weight`: float32 `[n]`, 1.0 for rows and 0.0 for
        padding. The dataset does not end, because `tf.distribute` treats one that may end differently: take as many
        steps.

    Raises:
        InputError: if the numbers do not divide, or the data is missing or does not fit together.
    """
    check_division(global_batch=global_batch, rows_per_element=rows_per_element, host=host, num_hosts=num_hosts)
    rows = stored_rows_of(corpora, split)
    total = int(rows.shard_rows.sum())
    num_steps = -(-total // global_batch)
    rows_of_host = num_steps * global_batch // num_hosts
    first = min(host * rows_of_host, total)
    end = min(first + rows_of_host, total)
    with tf.device("CPU:0"):
        tensors = rows.tensors()

        def read(shard, first_row, num_rows, skipped, stop):
            return rows.read(tensors, shard, first_row, num_rows)[skipped:stop]

        dataset = tf.data.Dataset.from_tensor_slices(_runs(rows, first, end)).map(read, num_parallel_calls=2)
        dataset = dataset.rebatch(_ROWS_PER_CHUNK).map(rows.decode, num_parallel_calls=2)
        dataset = dataset.map(lambda columns: columns | {"example_weight": _weights(columns, 1.0)})
        padding = _padding(dataset.element_spec, rows_per_element)
        dataset = dataset.concatenate(tf.data.Dataset.from_tensors(padding).repeat())
        dataset = dataset.rebatch(rows_per_element, drop_remainder=True).enumerate()

        def with_index(element, columns):
            index = host * rows_of_host + element * rows_per_element + tf.range(rows_per_element, dtype=tf.int64)
            return columns | {"example_index": tf.cast(index, tf.int32)}

        dataset = dataset.map(with_index)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return dataset.prefetch(prefetch).with_options(pipeline_options()), num_steps


def _weights(columns, value):
    """One weight a row."""
    return tf.fill(tf.shape(columns["token_ids"])[:1], value)


def _padding(spec, num_rows):
    """Returns rows of padding that look like the data: a single token each, since attention needs something to see."""
    padding = {
        name: np.zeros([num_rows, *column.shape[1:]], column.dtype.as_numpy_dtype) for name, column in spec.items()
    }
    padding["document_ids"][:, 0] = 1
    if "pair_labels" in padding:
        padding["pair_labels"][:] = -1
    return padding


def _runs(rows, first, end):
    """Returns the runs of rows to read for rows `first` to `end - 1` of the set.

    Returns:
        (shard, first row, number of rows, rows to skip at the start, end of the rows to keep), each `[runs]` int64.
    """
    runs = []
    run_rows = max(1, _MAX_RUN_BYTES // int(rows.row_bytes))
    start_of_shard = 0
    for shard, num_rows in enumerate(rows.shard_rows.tolist()):
        begin, stop = max(first - start_of_shard, 0), min(end - start_of_shard, num_rows)
        start_of_shard += num_rows
        if begin >= stop:
            continue
        if rows.shard_compressed[shard]:
            runs.append((shard, 0, num_rows, begin, stop))
            continue
        for row in range(begin, stop, run_rows):
            size = min(run_rows, stop - row)
            runs.append((shard, row, size, 0, size))
    return tuple(np.array(runs, np.int64).reshape(-1, 5).T)
