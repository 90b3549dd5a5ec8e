"""Readers of the same rows: the trainer's lanes, a bare TFRecordDataset, and parsing of each tf.train.Example."""

import tempfile
import time

import numpy as np

from tools.benchmark.peers import protocol
from tools.benchmark.workers.synthetic_data import write_data_set

_LANES = 64
_WARM_UP_ELEMENTS = 20


def _write_examples(path, rows, length, vocabulary_size):
    """Writes rows as `tf.train.Example`s with a feature `input_ids`, the customary way."""
    import tensorflow as tf

    ids = np.random.default_rng(0).integers(0, vocabulary_size, (rows, length))
    with tf.io.TFRecordWriter(path) as writer:
        for row in ids:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=row.tolist()))
            example = tf.train.Example(features=tf.train.Features(feature={"input_ids": feature}))
            writer.write(example.SerializeToString())


def _lanes(folder, settings):
    from trainer.data.corpora import Corpus
    from trainer.data.lanes import training_dataset

    return training_dataset(
        [Corpus(folder)],
        seed=0,
        lanes=min(_LANES, settings["reader_rows"]),
        start_step=0,
        global_batch=settings["reader_batch"],
        rows_per_element=settings["reader_batch"],
    )


def _bare(paths, settings):
    import tensorflow as tf

    dataset = tf.data.TFRecordDataset(paths).repeat().batch(settings["reader_batch"], drop_remainder=True)
    return dataset.map(lambda records: tf.io.decode_raw(records, tf.uint16)).prefetch(2)


def _parsed(path, settings):
    import tensorflow as tf

    features = {"input_ids": tf.io.FixedLenFeature([settings["length"]], tf.int64)}
    dataset = tf.data.TFRecordDataset(path).repeat()
    dataset = dataset.map(lambda record: tf.io.parse_single_example(record, features))
    return dataset.batch(settings["reader_batch"], drop_remainder=True).prefetch(2)


def _reading(dataset, batch):
    """Makes the command that reads a data set for some time; returns rows a second."""
    iterator = iter(dataset)
    for _ in range(_WARM_UP_ELEMENTS):
        next(iterator)

    def run(seconds):
        elements, began = 0, time.perf_counter()
        while elements == 0 or time.perf_counter() - began < seconds:
            next(iterator)
            elements += 1
        return {"rows_per_second": elements * batch / (time.perf_counter() - began)}

    return run


def prepare(settings):
    """See `protocol.serve`."""
    folder = tempfile.TemporaryDirectory(prefix="bert-trainer-benchmark-")
    sizes = {"length": settings["length"], "vocabulary_size": settings["vocabulary_size"]}
    paths = write_data_set(folder.name, rows=settings["reader_rows"], **sizes)
    examples = f"{folder.name}/examples"  # no name that the manifest would have to know
    _write_examples(examples, min(settings["reader_rows"], 20_000), **sizes)
    batch = settings["reader_batch"]
    # A prefetching reader keeps working after it was asked: each is made anew for each turn, and ends with it.
    readers = {
        "lanes": lambda: _lanes(folder.name, settings),
        "bare": lambda: _bare(paths, settings),
        "parse_single_example": lambda: _parsed(examples, settings),
    }

    def run(reader, seconds):
        return _reading(readers[reader](), batch)(seconds)

    # The folder lives as long as what refers to it.
    run.folder = folder
    return {}, {"run": run}


if __name__ == "__main__":
    protocol.serve(prepare)
