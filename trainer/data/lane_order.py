"""The order of training examples: a function of (seed, number of lanes) and the data alone.

The i-th example of a run is row i div L of lane i mod L. Each corpus owns a number of lanes in proportion to its
weight. In every epoch its blocks (runs of rows that are read at once) are permuted, the sequence of rows that results
is cut into one segment of equal size per lane, and the rows of each block are permuted. All permutations sort a
counter-based hash of (seed, corpus, epoch, block[, row]), so a position is one number and nothing has to be replayed to
get there.

`example_locations` is the order in NumPy; `lanes.training_dataset` computes the same inside the tf.data graph.
"""

import dataclasses
import math

import numpy as np

from trainer.data.corpora import stored_rows_of
from trainer.errors import InputError

GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64 (Steele, Lea, Flood 2014)
_WORD = (1 << 64) - 1

# A lane should go through at least this many blocks an epoch, so that lanes draw from many places of a shard.
_BLOCKS_PER_LANE = 4
_MIN_BLOCK_ROWS, _MAX_BLOCK_ROWS = 16, 8192
# One open and one read per block. Reading costs about a millisecond besides the bytes, and every lane holds a block in
# memory: with 64 lanes a megabyte each is little, and the overhead per row is below a microsecond. TensorFlow's client of
# object stores always asks for a whole megabyte; a little less fits when rows differ in size.
_MAX_BLOCK_BYTES = 15 << 16


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
        """Returns a text for people about each corpus."""
        return [
            f"{share.rows:,} rows, {len(share.lanes)} of {self.lanes} lanes = {share.share:.1%} of the "
            f"examples ({share.wished_share:.1%} by weight), {share.dropped_rows:,} rows left out in each epoch, "
            + (
                "each gzipped shard decompressed about "
                f"{1 + len(share.lanes) * share.block_rows // share.rows:,} times an epoch"
                if share.compressed
                else f"blocks of {share.block_rows:,} rows"
            )
            for share in self.shares
        ]


def plan_lanes(corpora, *, lanes, block_rows="auto", split="train"):
    """Divides lanes among corpora and rows into blocks.

    Args:
        corpora: `Corpus`es, `GoogleBertCorpus`es or `MemoryCorpus`es.
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
    check_integer("lanes", lanes, 1)
    if block_rows != "auto":
        check_integer("block_rows", block_rows, 1)
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
                f"{corpus.label} with weight {corpus.weight:g} of {total:g} would get no lane of {lanes}: raise lanes "
                f"to {enough} or more, raise its weight, or leave it out."
            )
    return counts


def _auto_block_rows(num_rows, num_lanes, row_bytes):
    """Returns the number of rows in a block: so many that a request is worth it, but a lane has many blocks.

    Of large data that is what a request of an object store may hold, of smaller data a power of two.
    """
    largest = min(_MAX_BLOCK_BYTES // int(row_bytes), _MAX_BLOCK_ROWS)
    size = max(num_rows // (num_lanes * _BLOCKS_PER_LANE), _MIN_BLOCK_ROWS)
    return max(largest, _MIN_BLOCK_ROWS) if size >= largest else 1 << (size.bit_length() - 1)


def check_integer(name, value, lowest):
    """Raises InputError unless `value` is an integer of at least `lowest`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < lowest:
        raise InputError(f"{name} is {value!r}: it must be an integer of at least {lowest}.")


def _mix(words):
    """The finalizer of SplitMix64, a bijection of 64-bit words; `words` is a NumPy array or a Python integer."""
    words = np.asarray(words, np.uint64)
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(MIX_1)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(MIX_2)
        return words ^ (words >> np.uint64(31))


def _fold(key, numbers):
    """Returns the keys derived from a key (or keys) and numbers."""
    with np.errstate(over="ignore"):
        return _mix(
            np.asarray(key, np.uint64) + (np.asarray(numbers).astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
        )


def _sort_order(keys):
    """The permutation that sorts 64-bit keys, ties by position; keys lose their lowest bit to be signed."""
    return np.argsort((keys >> np.uint64(1)).astype(np.int64), kind="stable")


def seed_key(seed):
    """Returns the 64-bit word that all permutations of a run derive from."""
    return int(_fold(0, int(seed) & _WORD))


def fixed_permutation(size):
    """Returns a permutation of `[size]` numbers, the same in every run: for rows that may stand sorted, by class say."""
    return _sort_order(_fold(seed_key(0), np.arange(size)))


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
