"""Rows of a bucket through TensorFlow's client: the right ones or an error, and no more bytes than they take."""

import time

import numpy as np
import pytest
import tensorflow as tf
from data.small_data_sets import write_data_set

from trainer.data.corpora import Corpus
from trainer.data.evaluation_rows import evaluation_dataset
from trainer.data.lanes import training_dataset
from trainer.data.stored_rows import explain_read_error
from trainer.errors import InputError, StorageFailed
from trainer.storage.synchronization import compare_folders, synchronize

ROWS = "read *.tfrecord"
LENGTH, LANES, BLOCK_ROWS = 100, 4, 256
REQUEST_BYTES = 1 << 20  # the least that TensorFlow's client asks for


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A data set on a disk: 10 MB in shards of unequal size."""
    folder = str(tmp_path_factory.mktemp("data"))
    write_data_set(folder, [20_000, 15_000], held_out_rows=[300], length=LENGTH)
    return folder


@pytest.fixture
def remote(bucket, local):
    """The same in a bucket."""
    synchronize(local, f"{bucket}/set", compare_folders(local, f"{bucket}/set"))
    return f"{bucket}/set"


def dataset(folder, step=0):
    return training_dataset(
        [Corpus(folder)],
        seed=1,
        lanes=LANES,
        start_step=step,
        global_batch=64,
        rows_per_element=64,
        block_rows=BLOCK_ROWS,
    )


def token_ids(folder, step=0, elements=40):
    return np.concatenate(
        [element["token_ids"] for element in dataset(folder, step).take(elements).as_numpy_iterator()]
    )


@pytest.mark.parametrize("step", [0, 12_345])
def test_rows_are_those_of_the_disk_in_the_same_order(remote, local, step):
    np.testing.assert_array_equal(token_ids(remote, step), token_ids(local, step))


@pytest.mark.parametrize("kind", ["corrupted", "short", "truncated", "reset_in_body"])
def test_what_arrives_damaged_is_read_again(emulator, remote, local, kind):
    fault = emulator.faults.add(ROWS, kind, times=2, after=2)
    np.testing.assert_array_equal(token_ids(remote), token_ids(local))
    assert emulator.faults.hits(fault) == 2


@pytest.mark.parametrize("kind", ["corrupted", "short"])
def test_what_always_arrives_damaged_is_never_used(emulator, remote, kind):
    emulator.faults.add(ROWS, kind, times=None)
    rows = dataset(remote)
    with pytest.raises(tf.errors.OpError) as caught:
        next(iter(rows))
    explained = explain_read_error(caught.value, Corpus.stored_rows([Corpus(remote)], "train"))
    assert isinstance(explained, StorageFailed) and "whole" in str(explained)


def test_an_altered_shard_is_no_fault_of_the_network(emulator, remote):
    stored = Corpus.stored_rows([Corpus(remote)], "train")
    for path in stored.paths:
        content = np.frombuffer(emulator.get(path), np.uint8).copy()
        content[40::200] ^= 1
        emulator.put(path, content.tobytes())
    with pytest.raises(tf.errors.OpError) as caught:
        next(iter(dataset(remote)))
    explained = explain_read_error(caught.value, stored)
    assert isinstance(explained, InputError) and "damaged" in str(explained)


def test_evaluation_reads_every_row(remote, local):
    def rows(folder):
        elements, steps = evaluation_dataset([Corpus(folder)], global_batch=32, rows_per_element=32)
        return np.concatenate([element["token_ids"] for element in elements.take(steps).as_numpy_iterator()])

    np.testing.assert_array_equal(rows(remote), rows(local))


def bytes_asked(emulator, folder, step):
    """Bytes of rows that come until all buffers are full."""
    emulator.requests.clear()
    iterator = iter(dataset(folder, step))
    next(iterator)
    last, now = None, 0
    while now != last or not now:
        time.sleep(1)
        last, now = now, sum(count.bytes_down for count in emulator.requests.counts(match=ROWS).values())
    del iterator
    return now


def test_starting_far_on_asks_for_no_more_bytes_than_starting(emulator, remote):
    """It may straddle another block in each lane, once in use and once asked for. 100,000 steps are 180 times the data."""
    at_start, far = (bytes_asked(emulator, remote, step) for step in (0, 100_000))
    assert far <= at_start + 2 * LANES * REQUEST_BYTES
