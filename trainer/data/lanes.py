"""Lanes: the order of training examples as a function of (seed, number of lanes) alone, and its tf.data pipeline.

The i-th example of a run is row i div L of lane i mod L. Each corpus owns a number of lanes in proportion to its weight.
In every epoch its blocks (runs of rows that are read at once) are permuted, the sequence of rows that results is cut into
one segment of equal size per lane, and the rows of each block are permuted. All permutations sort a counter-based hash of
(seed, corpus, epoch, block[, row]), so a position is one number and nothing has to be replayed to get there.

`example_locations` is the order in NumPy; `training_dataset` computes the same inside the tf.data graph.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.data.corpora import stored_rows_of
from trainer.errors import InputError

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64 (Steele, Lea, Flood 2014)
_WORD = (1 << 64) - 1

# A lane should go through at least this many blocks an epoch, so that lanes draw from many places of a shard.
_BLOCKS_PER_LANE = 16
_MIN_BLOCK_ROWS, _MAX_BLOCK_ROWS = 16, 8192
# One open and one read per block. Reading costs about a millisecond besides the bytes, and every lane holds a block in
# memory: with 64 lanes a megabyte each is little, and the overhead per row is below a microsecond.
_MAX_BLOCK_BYTES = 1 << 20
# Rows that leave the lanes together as one tf.data element, over all lanes.
_ROWS_PER_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class CorpusShare:
    """What part of a run one corpus has.

    Attributes:
        label: name of the corpus.
        rows: rows it holds.
        lanes: the numbers of its lanes, ascending.
        share: its part of the training examples, lanes over all lanes.
        wished_share: its part by weight; `share` is the nearest that whole lanes allow.
        rows_per_lane: rows that each of its lanes reads in an epoch.
        dropped_rows: rows left out in each epoch (other ones every time), fewer than it has lanes.
        block_rows: rows in a block.
        compressed: whether it holds gzipped shards, which are read whole.
    """

    label: str
    rows: int
    lanes: tuple
    share: float
    wished_share: float
    rows_per_lane: int
    dropped_rows: int
    block_rows: int
    compressed: bool

    def epochs(self, num_examples):
        """Returns how many epochs of this corpus the first `num_examples` examples of a run go through."""
        return num_examples * self.share / (len(self.lanes) * self.rows_per_lane)


@dataclasses.dataclass(frozen=True, eq=False)
class LanePlan:
    """How lanes are divided among corpora, and their rows into blocks.

    Attributes:
        rows: the `StoredRows`.
        lanes: number of lanes, L.
        shares: one `CorpusShare` a corpus.
        lane_corpus: `[lanes]` the corpus that owns each lane.
        lane_rank: `[lanes]` number of the lane among those of its corpus.
        shard_first_block: `[shards]` number of the first block of each shard, counted over all corpora.
        corpus_first_block: `[corpora + 1]` number of the first block of each corpus.
    """

    rows: object
    lanes: int
    shares: tuple
    lane_corpus: np.ndarray
    lane_rank: np.ndarray
    shard_first_block: np.ndarray
    corpus_first_block: np.ndarray

    def describe(self):
        """Returns a line for people about each corpus."""
        return [
            f"{share.label}: {share.rows:,} rows, {len(share.lanes)} of {self.lanes} lanes = {share.share:.1%} of the "
            f"examples ({share.wished_share:.1%} by weight), {share.dropped_rows:,} rows left out in each epoch"
            + (
                f"; gzipped shards are decompressed about {max(1, len(share.lanes) * share.block_rows // share.rows):,} "
                "times an epoch"
                if share.compressed
                else f", blocks of {share.block_rows:,} rows"
            )
            for share in self.shares
        ]


def plan_lanes(corpora, *, lanes, block_rows="auto", split="train"):
    """Divides lanes among corpora and rows into blocks.

    Args:
        corpora: `Corpus`es or `GoogleBertCorpus`es.
        lanes: number of lanes; a multiple of every number of hosts the run will ever have.
        block_rows: rows in a block; `"auto"` takes what the size of the data suggests. Part of the order.
        split: the split to read.

    Returns:
        `LanePlan`.

    Raises:
        InputError: if a corpus gets no lane or has fewer rows than lanes.
    """
    corpora = tuple(corpora)
    rows = stored_rows_of(corpora, split)
    _check_integer("lanes", lanes, 1)
    if block_rows != "auto":
        _check_integer("block_rows", block_rows, 1)
    counts = _divide_lanes(corpora, lanes)
    total_weight = sum(corpus.weight for corpus in corpora)
    # Lane k of m wants to stand at (k + 1/2) / m of the way: sorting by that spreads the owners evenly.
    places = sorted(
        ((2 * rank + 1) / (2 * count), corpus, rank) for corpus, count in enumerate(counts) for rank in range(count)
    )
    lane_corpus = np.array([corpus for _, corpus, _ in places], np.int64)
    lane_rank = np.array([rank for _, _, rank in places], np.int64)

    shares = []
    for number, corpus in enumerate(corpora):
        num_rows, count = rows.corpus_rows(number), counts[number]
        if num_rows < count:
            raise InputError(
                f"{corpus.label} has {num_rows:,} rows for {count} lanes: every lane needs at least one. Set lanes to "
                f"at most {max(1, lanes * num_rows // count)}, or prepare more data."
            )
        if rows.corpus_is_compressed(number):
            size = int(rows.shard_rows[rows.shard_corpus == number].max())
        else:
            size = _auto_block_rows(num_rows, count, rows.row_bytes) if block_rows == "auto" else block_rows
        shares.append(
            CorpusShare(
                label=corpus.label,
                rows=num_rows,
                lanes=tuple(np.flatnonzero(lane_corpus == number).tolist()),
                share=count / lanes,
                wished_share=corpus.weight / total_weight,
                rows_per_lane=num_rows // count,
                dropped_rows=num_rows % count,
                block_rows=size,
                compressed=rows.corpus_is_compressed(number),
            )
        )
    sizes = np.array([share.block_rows for share in shares])[rows.shard_corpus]
    ends = np.cumsum(-(-rows.shard_rows // sizes))
    corpus_ends = [ends[np.flatnonzero(rows.shard_corpus == number)[-1]] for number in range(len(corpora))]
    return LanePlan(
        rows=rows,
        lanes=lanes,
        shares=tuple(shares),
        lane_corpus=lane_corpus,
        lane_rank=lane_rank,
        shard_first_block=np.concatenate([[0], ends[:-1]]).astype(np.int64),
        corpus_first_block=np.array([0, *corpus_ends], np.int64),
    )


def _divide_lanes(corpora, lanes):
    """Returns the number of lanes of each corpus: in proportion to the weights, by largest remainder."""
    for corpus in corpora:
        if not (math.isfinite(corpus.weight) and corpus.weight > 0):
            raise InputError(f"{corpus.label} has weight {corpus.weight}: a weight must be a number above 0.")
    total = sum(corpus.weight for corpus in corpora)
    quotas = [lanes * corpus.weight / total for corpus in corpora]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(corpora)), key=lambda number: (counts[number] - quotas[number], number))
    for number in by_remainder[: lanes - sum(counts)]:
        counts[number] += 1
    for corpus, count in zip(corpora, counts, strict=True):
        if not count:
            enough = math.ceil(total / corpus.weight)
            raise InputError(
                f"{corpus.label} with weight {corpus.weight:g} of {total:g} would get no lane of {lanes}: raise lanes to "
                f"{enough} or more, raise its weight, or leave it out."
            )
    return counts


def _auto_block_rows(num_rows, num_lanes, row_bytes):
    """Returns the number of rows in a block: a power of two, so that a lane has many blocks and a block is not huge."""
    size = min(num_rows // (num_lanes * _BLOCKS_PER_LANE), _MAX_BLOCK_BYTES // int(row_bytes), _MAX_BLOCK_ROWS)
    return 1 << (max(size, _MIN_BLOCK_ROWS).bit_length() - 1)


def _check_integer(name, value, lowest):
    """Raises InputError unless `value` is an integer of at least `lowest`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < lowest:
        raise InputError(f"{name} is {value!r}: it must be an integer of at least {lowest}.")


def _mix(words):
    """The finalizer of SplitMix64, a bijection of 64-bit words; `words` is a NumPy array or a Python integer."""
    words = np.asarray(words, np.uint64)
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(_MIX_1)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(_MIX_2)
        return words ^ (words >> np.uint64(31))


def _fold(key, numbers):
    """Returns the keys derived from a key (or keys) and numbers."""
    with np.errstate(over="ignore"):
        return _mix(
            np.asarray(key, np.uint64) + (np.asarray(numbers).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
        )


def _fold_in_graph(key, numbers):
    """`_fold` in TensorFlow operations; `key` is a uint64 tensor, `numbers` an int64 one."""
    words = key + (tf.bitcast(numbers, tf.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        shifted = tf.bitwise.right_shift(words, tf.constant(shift, tf.uint64))
        words = tf.bitwise.bitwise_xor(words, shifted) * np.uint64(factor)
    return tf.bitwise.bitwise_xor(words, tf.bitwise.right_shift(words, tf.constant(31, tf.uint64)))


def _sort_order(keys):
    """The permutation that sorts 64-bit keys, ties by position; keys lose their lowest bit to be signed."""
    return np.argsort((keys >> np.uint64(1)).astype(np.int64), kind="stable")


def _sort_order_in_graph(keys):
    """`_sort_order` in TensorFlow operations, as int64."""
    signed = tf.bitcast(tf.bitwise.right_shift(keys, tf.constant(1, tf.uint64)), tf.int64)
    return tf.cast(tf.argsort(signed, stable=True), tf.int64)


def seed_key(seed):
    """Returns the 64-bit word that all permutations of a run derive from."""
    return int(_fold(0, int(seed) & _WORD))


@dataclasses.dataclass(frozen=True)
class Locations:
    """Where examples lie; NumPy arrays of one length.

    Attributes:
        corpus: index of the corpus.
        shard: index of the shard into `StoredRows.paths`.
        row: row in the shard.
        epoch: epoch of the corpus.
        lane: lane that reads it.
    """

    corpus: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    epoch: np.ndarray
    lane: np.ndarray


def example_locations(plan, *, seed, first_example, num_examples):
    """Says where the examples of a run come from: the order of `training_dataset`, in NumPy.

    Args:
        plan: `LanePlan`.
        seed: integer seed of the run.
        first_example: number of the first example, counted from the start of the run (step times global batch).
        num_examples: how many.

    Returns:
        `Locations`.
    """
    examples = np.arange(first_example, first_example + num_examples, dtype=np.int64)
    lane, lane_row = examples % plan.lanes, examples // plan.lanes
    corpus = plan.lane_corpus[lane]
    rows_per_lane = np.array([share.rows_per_lane for share in plan.shares])[corpus]
    epoch, position = lane_row // rows_per_lane, plan.lane_rank[lane] * rows_per_lane + lane_row % rows_per_lane
    shard, row = np.zeros_like(examples), np.zeros_like(examples)
    for number in np.unique(corpus):
        for which in np.unique(epoch[corpus == number]):
            chosen = (corpus == number) & (epoch == which)
            shard[chosen], row[chosen] = _locate_in_epoch(plan, seed, int(number), int(which), position[chosen])
    return Locations(corpus=corpus, shard=shard, row=row, epoch=epoch, lane=lane)


def _locate_in_epoch(plan, seed, corpus, epoch, positions):
    """Returns (shards, rows) at positions in the sequence of rows of one epoch of one corpus."""
    rows, block_rows = plan.rows, plan.shares[corpus].block_rows
    key = _fold(_fold(seed_key(seed), corpus), epoch)
    first, end = plan.corpus_first_block[corpus : corpus + 2]
    blocks = first + _sort_order(_fold(key, np.arange(end - first)))
    shards = np.searchsorted(plan.shard_first_block, blocks, side="right") - 1
    first_rows = (blocks - plan.shard_first_block[shards]) * block_rows
    sizes = np.minimum(block_rows, rows.shard_rows[shards] - first_rows)
    ends = np.cumsum(sizes)
    slots = np.searchsorted(ends, positions, side="right")
    found = np.zeros_like(positions)
    for slot in np.unique(slots):
        chosen = slots == slot
        order = _sort_order(_fold(_fold(key, blocks[slot] - first), np.arange(sizes[slot])))
        found[chosen] = first_rows[slot] + order[positions[chosen] - (ends[slot] - sizes[slot])]
    return shards[slots], found


def check_division(*, global_batch, rows_per_element, host, num_hosts, lanes=None):
    """Raises InputError, with the nearest values that do, unless the batch divides over hosts and elements."""
    for name, value in (
        ("global_batch", global_batch),
        ("rows_per_element", rows_per_element),
        ("num_hosts", num_hosts),
    ):
        _check_integer(name, value, 1)
    _check_integer("host", host, 0)
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
):
    """Returns the training examples of one host from a step on, without end.

    Args:
        corpora: `Corpus`es or `GoogleBertCorpus`es, or a `LanePlan` made of them.
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

    Returns:
        `tf.data.Dataset` of dicts, n being `rows_per_element`: `token_ids`, `segment_ids`, `document_ids`: int32
        `[n, length]`; `pair_labels`: int32 `[n]`; `example_index`: int32 `[n]`, index of the row in the global batch of
        its step; for Google BERT's static masks also `masked_positions`, `masked_ids`, `masked_weights`.

    Raises:
        InputError: if the numbers do not divide, or the data is missing or does not fit together.
    """
    plan = corpora if isinstance(corpora, LanePlan) else plan_lanes(corpora, lanes=lanes, block_rows=block_rows)
    _check_integer("start_step", start_step, 0)
    if not isinstance(seed, int | np.integer):
        raise InputError(f"seed is {seed!r}: it must be an integer.")
    check_division(
        global_batch=global_batch,
        rows_per_element=rows_per_element,
        host=host,
        num_hosts=num_hosts,
        lanes=plan.lanes,
    )
    with tf.device("CPU:0"):
        records = _records_in_order(plan, seed, start_step * global_batch + host, num_hosts, num_parallel_reads)
        elements_per_step = global_batch // num_hosts // rows_per_element

        def with_columns(element, rows):
            first = host + num_hosts * rows_per_element * (element % elements_per_step)
            index = first + num_hosts * tf.range(rows_per_element, dtype=tf.int64)
            rows = tf.ensure_shape(rows, [rows_per_element, *rows.shape[1:]])
            return plan.rows.decode(rows) | {"example_index": tf.cast(index, tf.int32)}

        dataset = tf.data.Dataset.zip((tf.data.Dataset.counter(), records.rebatch(rows_per_element)))
        dataset = dataset.map(with_columns, num_parallel_calls=2, deterministic=True)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return dataset.prefetch(prefetch).with_options(pipeline_options())


def pipeline_options():
    """Returns the tf.data options of every pipeline here: ordered, and never sharded behind our back."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def _records_in_order(plan, seed, first_example, stride, num_parallel_reads):
    """Returns a dataset of `[rows, ...]` records: the examples `first_example`, `first_example + stride`, ..."""
    # The first examples come from different lanes; from then on each lane gives its next row in the same turn.
    num_slots = plan.lanes // stride
    firsts = first_example + stride * np.arange(num_slots, dtype=np.int64)
    slot_lanes = tf.constant(firsts % plan.lanes)
    slot_rows = tf.constant(firsts // plan.lanes)
    chunk_rows = max(1, min(_ROWS_PER_CHUNK // num_slots, 1024))
    if num_parallel_reads == "auto":
        # Reading from an object store is waiting, from a disk it is work for the processor.
        remote = any(storage.is_remote(path) for path in plan.rows.paths)
        num_parallel_reads = 32 if remote else 4
    _check_integer("num_parallel_reads", num_parallel_reads, 1)
    tables = _Tables(plan, seed)

    def read_lane(slot):
        return tables.lane_records(slot_lanes[slot], slot_rows[slot]).rebatch(chunk_rows)

    def take_turns(chunks):
        flat = tf.reshape(chunks, [num_slots * chunk_rows, *chunks.shape[2:]])
        turns = np.arange(num_slots * chunk_rows).reshape(num_slots, chunk_rows).T.reshape(-1)
        return tf.gather(flat, tf.constant(turns, tf.int32))

    chunks = tf.data.Dataset.range(num_slots).interleave(
        read_lane,
        cycle_length=num_slots,
        block_length=1,
        num_parallel_calls=min(num_parallel_reads, num_slots),
        deterministic=True,
    )
    return chunks.batch(num_slots, drop_remainder=True).map(take_turns, num_parallel_calls=1, deterministic=True)


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

        return tf.data.Dataset.counter(first_epoch).flat_map(blocks_of_epoch).map(read)

    def _pieces(self, corpus, key, lowest, end):
        """The blocks, or parts of them, that make up a range of an epoch's sequence of rows."""
        first_block = self.corpus_first_block[corpus]
        num_blocks = self.corpus_first_block[corpus + 1] - first_block
        keys = _fold_in_graph(key, tf.range(num_blocks, dtype=tf.int64))
        order = _sort_order_in_graph(keys)
        blocks = order + first_block
        shards = tf.searchsorted(self.shard_first_block, blocks, side="right", out_type=tf.int64) - 1
        first_rows = (blocks - tf.gather(self.shard_first_block, shards)) * self.block_rows[corpus]
        left = tf.gather(tf.constant(self.rows.shard_rows), shards) - first_rows
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
