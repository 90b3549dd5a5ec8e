"""Lanes: the tf.data pipeline of training examples in the order of `lane_order`, computed inside the graph.

A lane is a dataset of its own: the blocks of its segment of each epoch, each read at once, verified and permuted. Lanes
take turns a chunk of rows at a time and the chunks are transposed, so there is never a tf.data element of one example.
"""

import numpy as np
import tensorflow as tf

from trainer.data.data_service import check_services, read_through_services
from trainer.data.lane_order import GOLDEN, MIX_1, MIX_2, LanePlan, check_integer, plan_lanes, seed_key
from trainer.errors import InputError

# Rows that leave the lanes together as one tf.data element, over all lanes.
_ROWS_PER_CHUNK = 4096


def check_division(*, global_batch, rows_per_element, host, num_hosts, lanes=None):
    """Raises InputError, with the nearest values that do, unless the batch divides over hosts and elements."""
    for name, value in (
        ("global_batch", global_batch),
        ("rows_per_element", rows_per_element),
        ("num_hosts", num_hosts),
    ):
        check_integer(name, value, 1)
    check_integer("host", host, 0)
    if host >= num_hosts:
        raise InputError(f"host is {host} of {num_hosts} hosts: it must be below {num_hosts}.")
    for name, value in (("lanes", lanes), ("global_batch", global_batch)):
        if value is not None and value % num_hosts:
            below, above = value // num_hosts * num_hosts, -(-value // num_hosts) * num_hosts
            raise InputError(
                f"{num_hosts} hosts do not divide {name} = {value}: the nearest {name} that they divide "
                + (f"are {below} and {above}." if below else f"is {above}.")
                + (" Changing lanes changes the order of the data." if name == "lanes" else "")
            )
    per_host = global_batch // num_hosts
    if per_host % rows_per_element:
        divisors = [size for size in range(1, per_host + 1) if per_host % size == 0]
        below = max(size for size in divisors if size <= min(rows_per_element, per_host))
        above = min((size for size in divisors if size > rows_per_element), default=None)
        raise InputError(
            f"elements of {rows_per_element} rows do not divide the {per_host} rows of a step on one host "
            f"({global_batch} / {num_hosts}): the nearest sizes that do are {below}"
            + (f" and {above}." if above else ".")
        )


def training_dataset(
    corpora,
    *,
    seed,
    lanes,
    start_step,
    global_batch,
    rows_per_element,
    host=0,
    num_hosts=1,
    block_rows="auto",
    num_parallel_reads="auto",
    prefetch=2,
    services=(),
):
    """Returns the training examples of one host from a step on, without end.

    Args:
        corpora: `Corpus`es, `GoogleBertCorpus`es or `MemoryCorpus`es, or a `LanePlan` made of them.
        seed: integer; decides the order.
        lanes: number of lanes; decides the order. Ignored with a `LanePlan`, as is `block_rows`.
        start_step: the step whose examples come first; reaching it reads nothing of what lies before.
        global_batch: examples in a step, over all hosts.
        rows_per_element: rows in an element of the dataset: what one replica takes for one step, microbatch times
            accumulation steps. Must divide `global_batch / num_hosts`.
        host, num_hosts: serves the examples i with `i % num_hosts == host`. Must divide `lanes` and `global_batch`.
        block_rows: see `plan_lanes`.
        num_parallel_reads: lanes read at a time; does not change the order.
        prefetch: elements made ahead of being asked for.
        services: addresses of tf.data services that read and decode instead of this host, see `data_service`.

    Returns:
        `tf.data.Dataset` of dicts, n being `rows_per_element`: `token_ids`, `segment_ids`, `document_ids`: int32
        `[n, length]`; `pair_labels`: int32 `[n]`; `example_index`: int32 `[n]`, index of the row in the global batch of
        its step; for Google BERT's static masks also `masked_positions`, `masked_ids`, `masked_weights`. Of a
        `MemoryCorpus` whatever columns it has.

    Raises:
        InputError: if the numbers do not divide, or the data is missing or does not fit together.
    """
    plan = corpora if isinstance(corpora, LanePlan) else plan_lanes(corpora, lanes=lanes, block_rows=block_rows)
    check_integer("start_step", start_step, 0)
    if not isinstance(seed, int | np.integer):
        raise InputError(f"seed is {seed!r}: it must be an integer.")
    check_division(
        global_batch=global_batch,
        rows_per_element=rows_per_element,
        host=host,
        num_hosts=num_hosts,
        lanes=plan.lanes,
    )
    first = start_step * global_batch

    def rows_of(host, num_hosts, rows_per_element):
        dataset = _rows_in_order(plan, seed, first, global_batch, host, num_hosts, num_parallel_reads)
        return dataset.rebatch(rows_per_element, drop_remainder=True)

    with tf.device("CPU:0"):
        if services:
            check_services(services, plan.lanes, rows_per_element, num_hosts)
            dataset = read_through_services(services, rows_of, host, num_hosts, rows_per_element)
        else:
            dataset = rows_of(host, num_hosts, rows_per_element)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return dataset.prefetch(prefetch).with_options(pipeline_options())


def pipeline_options():
    """Returns the tf.data options of every pipeline here: ordered, and never sharded behind our back."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def parallel_reads(plan, given):
    """Returns how many lanes are read at a time: what is `given`, or for `auto` what suits where the rows lie."""
    if given == "auto":
        # Reading from an object store is waiting, from a disk it is work for the processor.
        return 32 if plan.rows.remote else 4
    check_integer("num_parallel_reads", given, 1)
    return given


def _rows_in_order(plan, seed, first_example, global_batch, host, num_hosts, num_parallel_reads):
    """Returns a dataset of many decoded rows at a time: the examples of one host from the start of a step on."""
    # The first examples come from different lanes; from then on each lane gives its next row in the same turn.
    num_slots = plan.lanes // num_hosts
    firsts = first_example + host + num_hosts * np.arange(num_slots, dtype=np.int64)
    slot_lanes = tf.constant(firsts % plan.lanes)
    slot_rows = tf.constant(firsts // plan.lanes)
    chunk_rows = max(1, min(_ROWS_PER_CHUNK // num_slots, max(share.block_rows for share in plan.shares)))
    num_parallel_reads = parallel_reads(plan, num_parallel_reads)
    tables = _Tables(plan, seed)

    def read_lane(slot):
        return tables.lane_records(slot_lanes[slot], slot_rows[slot]).rebatch(chunk_rows)

    def take_turns(number, chunks):
        flat = tf.reshape(chunks, [num_slots * chunk_rows, *chunks.shape[2:]])
        turns = np.arange(num_slots * chunk_rows).reshape(num_slots, chunk_rows).T.reshape(-1)
        index = number * turns.size + tf.range(turns.size, dtype=tf.int64)
        index = host + num_hosts * (index % (global_batch // num_hosts))
        rows = plan.rows.decode(tf.gather(flat, tf.constant(turns, tf.int32)))
        return rows | {"example_index": tf.cast(index, tf.int32)}

    chunks = tf.data.Dataset.range(num_slots).interleave(
        read_lane,
        cycle_length=num_slots,
        block_length=1,
        num_parallel_calls=min(num_parallel_reads, num_slots),
        deterministic=True,
    )
    # Decoding many rows at a time matters: an operation costs as much to start as to decode dozens of rows.
    return chunks.batch(num_slots, drop_remainder=True).enumerate().map(take_turns, num_parallel_calls=2)


def _fold_in_graph(key, numbers):
    """`_fold` in TensorFlow operations; `key` is a uint64 tensor, `numbers` an int64 one."""
    words = key + (tf.bitcast(numbers, tf.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        shifted = tf.bitwise.right_shift(words, tf.constant(shift, tf.uint64))
        words = tf.bitwise.bitwise_xor(words, shifted) * np.uint64(factor)
    return tf.bitwise.bitwise_xor(words, tf.bitwise.right_shift(words, tf.constant(31, tf.uint64)))


def _sort_order_in_graph(keys):
    """`_sort_order` in TensorFlow operations, as int64."""
    signed = tf.bitcast(tf.bitwise.right_shift(keys, tf.constant(1, tf.uint64)), tf.int64)
    return tf.cast(tf.argsort(signed, stable=True), tf.int64)


class _Tables:
    """The tables of a plan as tensors, and the reading of one lane in terms of them."""

    def __init__(self, plan, seed):
        self.rows = plan.rows
        self.files = plan.rows.tensors()
        self.seed_key = tf.constant(np.uint64(seed_key(seed)))
        self.lane_corpus, self.lane_rank = tf.constant(plan.lane_corpus), tf.constant(plan.lane_rank)
        self.rows_per_lane = tf.constant([share.rows_per_lane for share in plan.shares], tf.int64)
        self.block_rows = tf.constant([share.block_rows for share in plan.shares], tf.int64)
        self.shard_first_block = tf.constant(plan.shard_first_block)
        self.corpus_first_block = tf.constant(plan.corpus_first_block)

    def lane_records(self, lane, first_row):
        """Returns a dataset of the records of a lane from a row on, a block at a time, epoch after epoch."""
        corpus = self.lane_corpus[lane]
        rows_per_lane = self.rows_per_lane[corpus]
        first_epoch, skipped = first_row // rows_per_lane, first_row % rows_per_lane

        def blocks_of_epoch(epoch):
            start = self.lane_rank[lane] * rows_per_lane
            lowest = start + tf.where(epoch == first_epoch, skipped, 0)
            key = _fold_in_graph(_fold_in_graph(self.seed_key, corpus), epoch)
            pieces = self._pieces(corpus, key, lowest, start + rows_per_lane)
            return tf.data.Dataset.from_tensor_slices(pieces)

        def read(key, shard, first_row, num_rows, begin, end):
            records = self.rows.read(self.files, shard, first_row, num_rows)
            order = _sort_order_in_graph(_fold_in_graph(key, tf.range(num_rows, dtype=tf.int64)))
            return tf.gather(records, order[begin:end])

        blocks = tf.data.Dataset.counter(first_epoch).flat_map(blocks_of_epoch).map(read)
        # All lanes come to the end of a block at the same time: those of an object store ask for the next one before.
        return blocks.prefetch(1) if self.rows.remote else blocks

    def _pieces(self, corpus, key, lowest, end):
        """The blocks, or parts of them, that make up a range of an epoch's sequence of rows."""
        first_block = self.corpus_first_block[corpus]
        num_blocks = self.corpus_first_block[corpus + 1] - first_block
        keys = _fold_in_graph(key, tf.range(num_blocks, dtype=tf.int64))
        order = _sort_order_in_graph(keys)
        blocks = order + first_block
        shards = tf.searchsorted(self.shard_first_block, blocks, side="right", out_type=tf.int64) - 1
        first_rows = (blocks - tf.gather(self.shard_first_block, shards)) * self.block_rows[corpus]
        left = tf.gather(self.files["rows"], shards) - first_rows
        sizes = tf.minimum(self.block_rows[corpus], left)
        ends = tf.cumsum(sizes)
        starts = ends - sizes
        chosen = slice(
            tf.searchsorted(ends, [lowest], side="right")[0],
            tf.searchsorted(starts, [end], side="left")[0],
        )
        return (
            tf.gather(keys, order[chosen]),
            shards[chosen],
            first_rows[chosen],
            sizes[chosen],
            tf.maximum(lowest - starts[chosen], 0),
            tf.minimum(end - starts[chosen], sizes[chosen]),
        )
