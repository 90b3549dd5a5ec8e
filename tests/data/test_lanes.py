"""The order of training examples and the pipeline that serves it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from small_data_sets import row_numbers, write_data_set

from trainer import storage
from trainer.data.corpora import Corpus
from trainer.data.lane_order import example_locations, plan_lanes
from trainer.data.lanes import training_dataset
from trainer.data.stored_rows import explain_read_error
from trainer.errors import InputError, StorageFailed

SHARD_ROWS = (50, 37, 61)  # 148 rows
LANES = 8  # 18 rows a lane and epoch, 4 dropped: an epoch is 144 examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("prepared"))
    write_data_set(folder, SHARD_ROWS)
    return folder


def read(corpora, num_elements, **changes):
    """Returns elements as NumPy arrays joined over rows: `{name: [rows, ...]}`."""
    settings = {"seed": 1, "lanes": LANES, "start_step": 0, "global_batch": 12, "rows_per_element": 12}
    settings |= {"block_rows": 8} | changes
    elements = list(training_dataset(corpora, **settings).take(num_elements).as_numpy_iterator())
    return {name: np.concatenate([element[name] for element in elements]) for name in elements[0]}


def expected_numbers(plan, first_example, num_examples, seed=1, first_ids=(0,)):
    """The numbers of the rows that `example_locations` names."""
    locations = example_locations(plan, seed=seed, first_example=first_example, num_examples=num_examples)
    starts = np.zeros_like(plan.rows.shard_rows)
    for corpus, first_id in enumerate(first_ids):
        chosen = plan.rows.shard_corpus == corpus
        starts[chosen] = first_id + np.cumsum(plan.rows.shard_rows[chosen]) - plan.rows.shard_rows[chosen]
    return starts[locations.shard] + locations.row


def test_the_graph_serves_the_order_of_the_reference_over_three_epochs(folder):
    rows = read([Corpus(folder)], 36)
    plan = plan_lanes([Corpus(folder)], lanes=LANES, block_rows=8)
    np.testing.assert_array_equal(row_numbers(rows["token_ids"]), expected_numbers(plan, 0, 432))
    np.testing.assert_array_equal(rows["example_index"], np.tile(np.arange(12), 36))


def test_an_element_has_the_promised_columns(folder):
    dataset = training_dataset(
        [Corpus(folder)], seed=1, lanes=LANES, start_step=0, global_batch=12, rows_per_element=4, block_rows=8
    )
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    expected = dict.fromkeys(("token_ids", "segment_ids", "document_ids"), ((4, 8), tf.int32))
    expected |= dict.fromkeys(("pair_labels", "example_index"), ((4,), tf.int32))
    assert {name: (tuple(spec.shape), spec.dtype) for name, spec in dataset.element_spec.items()} == expected


@pytest.mark.parametrize("block_rows", [1, 5, 8, 64])
def test_an_epoch_serves_every_row_at_most_once_and_drops_the_stated_number(folder, block_rows):
    plan = plan_lanes([Corpus(folder)], lanes=LANES, block_rows=block_rows)
    share = plan.shares[0]
    assert (share.rows_per_lane, share.dropped_rows) == (18, 4)
    seen = [expected_numbers(plan, 144 * epoch, 144) for epoch in range(4)]
    dropped = [frozenset(range(148)) - set(numbers) for numbers in seen]
    assert [len(set(numbers)) for numbers in seen] == [144] * 4
    assert [len(rows) for rows in dropped] == [share.dropped_rows] * 4
    assert len(set(dropped)) > 1, "the same rows are left out in every epoch"
    assert len({tuple(numbers) for numbers in seen}) == 4, "epochs repeat the order"


def test_a_seed_decides_the_order(folder):
    plan = plan_lanes([Corpus(folder)], lanes=LANES, block_rows=8)
    orders = {tuple(expected_numbers(plan, 0, 144, seed=seed)) for seed in (0, 1, 2, -1, 2**63 + 5)}
    assert len(orders) == 5


def test_consecutive_examples_come_from_all_over_the_data(folder):
    """The distance in the file between one example and the next is that of random pairs, a third of the whole."""
    plan = plan_lanes([Corpus(folder)], lanes=LANES, block_rows=8)
    numbers = np.concatenate([expected_numbers(plan, 0, 144, seed=seed) for seed in range(20)])
    assert abs(np.abs(np.diff(numbers)).mean() / 148 - 1 / 3) < 0.03


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_interleaved_equal_one_host(folder, num_hosts):
    whole = read([Corpus(folder)], 30)
    per_host = 12 // num_hosts
    parts = [
        read([Corpus(folder)], 30, host=host, num_hosts=num_hosts, rows_per_element=per_host)
        for host in range(num_hosts)
    ]
    for name, column in whole.items():
        together = np.stack([part[name] for part in parts], axis=1).reshape(column.shape)
        np.testing.assert_array_equal(together, column, err_msg=name)


@pytest.mark.parametrize("changes", [{"rows_per_element": 3}, {"num_parallel_reads": 1}, {"num_parallel_reads": 7}])
def test_the_order_does_not_depend_on_elements_or_readers(folder, changes):
    elements = 20 * 12 // changes.get("rows_per_element", 12)
    whole, other = read([Corpus(folder)], 20), read([Corpus(folder)], elements, **changes)
    for name, column in whole.items():
        np.testing.assert_array_equal(other[name], column, err_msg=name)


def test_the_batch_size_does_not_change_the_order(folder):
    np.testing.assert_array_equal(
        read([Corpus(folder)], 20)["token_ids"],
        read([Corpus(folder)], 15, global_batch=16, rows_per_element=16)["token_ids"],
    )


@pytest.mark.parametrize("start_step", [1, 11, 12, 13, 37])
def test_seeking_to_a_step_equals_reading_up_to_it(folder, start_step):
    whole = read([Corpus(folder)], 42)
    rest = read([Corpus(folder)], 5, start_step=start_step)
    for name, column in whole.items():
        np.testing.assert_array_equal(rest[name], column[12 * start_step : 12 * (start_step + 5)], err_msg=name)


def test_seeking_far_ahead_agrees_with_the_reference(folder):
    plan = plan_lanes([Corpus(folder)], lanes=LANES, block_rows=8)
    rows = read([Corpus(folder)], 4, start_step=10**9)
    np.testing.assert_array_equal(row_numbers(rows["token_ids"]), expected_numbers(plan, 12 * 10**9, 48))


READ_BYTES_OF_FIRST_BATCH = """
import sys
import time
from trainer.data.corpora import Corpus
from trainer.data.lanes import training_dataset

def bytes_read():
    return int(open("/proc/self/io").read().split("rchar: ")[1].split()[0])

def bytes_read_when_buffers_are_full():
    last, now = None, bytes_read()
    while last is None or now - last > 1024:  # the query itself, and the threads' signals, are of some bytes, too
        time.sleep(1)
        last, now = now, bytes_read()
    return now

dataset = training_dataset([Corpus(sys.argv[1])], seed=1, lanes=4, start_step=0, global_batch=8, rows_per_element=8)
next(iter(dataset))  # libraries that load with the first batch
for step in (0, 100_000):
    dataset = training_dataset([Corpus(sys.argv[1])], seed=1, lanes=4, start_step=step, global_batch=8,
                               rows_per_element=8, block_rows=256, num_parallel_reads=1)
    before = bytes_read()
    iterator = iter(dataset)
    next(iterator)
    print(bytes_read_when_buffers_are_full() - before)
    del iterator
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="the kernel does not count the bytes a process reads")
def test_starting_at_step_100_000_reads_no_more_than_starting_at_0(tmp_path):
    """Starting late may straddle one more block a lane, and does not read what lies before."""
    manifest = write_data_set(str(tmp_path), [20_000, 15_000], length=100)
    total = sum(shard.bytes for shard in manifest.splits["train"])
    run = subprocess.run(
        [sys.executable, "-c", READ_BYTES_OF_FIRST_BATCH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    at_start, late = (int(line) for line in run.stdout.split())
    block_bytes = 256 * manifest.row_format.stride
    assert at_start >= 4 * block_bytes
    assert late <= at_start + 4 * 2 * block_bytes
    assert max(at_start, late) < total / 3


def test_several_corpora_have_the_stated_shares_spread_evenly(folder, tmp_path):
    write_data_set(str(tmp_path), [80], first_id=1000)
    corpora = [Corpus(folder, weight=3), Corpus(str(tmp_path), weight=1)]
    plan = plan_lanes(corpora, lanes=LANES, block_rows=8)
    assert [len(share.lanes) for share in plan.shares] == [6, 2]
    assert np.diff(plan.shares[1].lanes).tolist() == [4]
    rows = read(corpora, 40)
    numbers = row_numbers(rows["token_ids"])
    np.testing.assert_array_equal(numbers, expected_numbers(plan, 0, 480, first_ids=(0, 1000)))
    assert np.mean(numbers >= 1000) == 0.25
    # An epoch of the second corpus: its two lanes of 40 rows serve all its rows.
    assert set(numbers[: 40 * LANES][numbers[: 40 * LANES] >= 1000]) == set(range(1000, 1080))


def test_shares_are_the_nearest_that_whole_lanes_allow(folder):
    plan = plan_lanes([Corpus(folder, 0.5), Corpus(folder, 0.3), Corpus(folder, 0.2)], lanes=16, block_rows=8)
    assert [len(share.lanes) for share in plan.shares] == [8, 5, 3]
    assert sorted(lane for share in plan.shares for lane in share.lanes) == list(range(16))
    assert "31.2% of the examples (30.0% by weight)" in plan.describe()[1]
    assert plan.shares[0].epochs(16 * 18 * 3) == 3.0


def test_gzipped_shards_serve_the_same_rows_in_an_epoch(tmp_path):
    write_data_set(str(tmp_path), SHARD_ROWS, gzipped=True)
    rows = read([Corpus(str(tmp_path))], 24)
    plan = plan_lanes([Corpus(str(tmp_path))], lanes=LANES)
    np.testing.assert_array_equal(row_numbers(rows["token_ids"]), expected_numbers(plan, 0, 288))
    assert len(set(row_numbers(rows["token_ids"])[:144])) == 144
    assert "decompressed" in plan.describe()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hosts": 3}, "3 hosts do not divide lanes = 8: .* are 6 and 9"),
        ({"num_hosts": 8}, "8 hosts do not divide global_batch = 12: .* are 8 and 16"),
        ({"num_hosts": 2, "rows_per_element": 4}, "do not divide the 6 rows .* are 3 and 6"),
        ({"num_hosts": 2, "host": 2}, "host is 2 of 2 hosts"),
        ({"lanes": 149}, "has 148 rows for 149 lanes: .* at most 148"),
        ({"lanes": 0}, "lanes is 0"),
        ({"start_step": -1}, "start_step is -1"),
        ({"block_rows": 0}, "block_rows is 0"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_the_nearest_that_do(folder, changes, message):
    with pytest.raises(InputError, match=message):
        read([Corpus(folder)], 1, **changes)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 0.01), "would get no lane of 8: raise lanes to 101"),
        ((1, 0), "weight 0"),
        ((1, float("nan")), "weight nan"),
    ],
)
def test_weights_that_give_no_lane_are_refused(folder, weights, message):
    with pytest.raises(InputError, match=message):
        plan_lanes([Corpus(folder, weight) for weight in weights], lanes=LANES)


def error_of_reading(folder):
    """Returns what reading an epoch raises, as a person sees it, and what TensorFlow raised."""
    plan = plan_lanes([Corpus(folder)], lanes=4, block_rows=8)
    with pytest.raises(tf.errors.OpError) as caught:
        for _ in training_dataset(plan, seed=1, lanes=4, start_step=0, global_batch=4, rows_per_element=4).take(40):
            pass
    return explain_read_error(caught.value, plan.rows), caught.value, plan.rows


def damage(folder, kind):
    """Damages the second shard of a data set and returns its path."""
    path, other = (storage.join(folder, f"train-0000{shard}.tfrecord") for shard in (1, 0))
    content = bytearray(storage.read_bytes(path))
    if kind == "one byte":
        content[len(content) // 2 + 20] ^= 1
    elif kind == "one byte of the framing":
        content[len(content) // 2] ^= 1
    elif kind == "truncated in a row":
        del content[-10:]
    elif kind == "truncated between rows":
        del content[-len(content) // 40 * 8 :]
    elif kind == "rows of another shard":
        content = bytearray(storage.read_bytes(other))
    elif kind == "rows in another order":
        stride = len(content) // 40
        content[:stride], content[stride : 2 * stride] = content[stride : 2 * stride], content[:stride]
    storage.remove(path)
    if kind != "missing":
        storage.write_bytes(path, bytes(content))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("one byte", "is damaged: corrupted record at byte 880"),
        ("one byte of the framing", "is damaged: corrupted record at byte 880"),
        ("truncated in a row", "truncated"),
        ("truncated between rows", "truncated, or not the file"),
        ("rows of another shard", "not the file that was prepared: of its rows"),
        ("rows in another order", "not the file that was prepared: of its rows"),
        ("missing", "is missing"),
    ],
)
def test_a_shard_that_changes_during_training_is_named(tmp_path, kind, message):
    write_data_set(str(tmp_path), [40, 40])
    path = damage(str(tmp_path), kind)
    error, _, _ = error_of_reading(str(tmp_path))
    assert isinstance(error, InputError)
    assert path in str(error)
    assert message in str(error)


def test_damage_that_is_gone_when_looked_for_is_blamed_on_the_storage(tmp_path):
    write_data_set(str(tmp_path), [40, 40])
    whole = storage.read_bytes(storage.join(str(tmp_path), "train-00001.tfrecord"))
    path = damage(str(tmp_path), "one byte")
    _, raised, rows = error_of_reading(str(tmp_path))
    storage.write_bytes(path, whole)
    error = explain_read_error(raised, rows)
    assert isinstance(error, StorageFailed)
    assert str(tmp_path) in str(error)


def test_a_damaged_gzipped_shard_is_named(tmp_path):
    write_data_set(str(tmp_path), [40, 40], gzipped=True)
    path = storage.join(str(tmp_path), "train-00001.tfrecord.gz")
    content = bytearray(storage.read_bytes(path))
    content[len(content) // 2] ^= 255
    storage.write_bytes(path, bytes(content))
    error, _, _ = error_of_reading(str(tmp_path))
    assert isinstance(error, InputError)
    assert path in str(error)


def test_an_error_that_is_not_about_data_stays_what_it_is(folder):
    rows = plan_lanes([Corpus(folder)], lanes=4).rows
    assert explain_read_error(ValueError("something else"), rows) is None
    assert explain_read_error(tf.errors.ResourceExhaustedError(None, None, "out of memory"), rows) is None
