"""Packing: documents of token ids to rows of a fixed length.

- `full_sentences` (RoBERTa, Liu et al. 2019, section 4.2): `[CLS] tokens [SEP]` of a document after the other, each
  with its boundary kept; a document that does not fit goes on in the next row, from the start of a word.
- `sentence_pair_nsp` (BERT's create_pretraining_data.py): `[CLS] A [SEP] B [SEP]`, where B follows A (label 0), or
  comes from another document of the shard in half the cases (label 1).
- `sentence_pair_sop` (ALBERT, Lan et al. 2020): B follows A (label 0), or the two are swapped (label 1).

All randomness is a hash of (seed, shard, document, number of the draw).
"""

import dataclasses

import numpy as np

from trainer.data.records import NO_LABEL

MODES = ("full_sentences", "sentence_pair_nsp", "sentence_pair_sop")
# A shorter rest of a row is padded, not filled with the start of a document: fragments that short teach little.
_SHORTEST_PIECE = 8
_COPIES_AT_ONCE = 16384  # runs of tokens; bounds the memory for their indices, which take more than the tokens
_NSP_RANDOM_SHARE = 0.5
_SOP_SWAPPED_SHARE = 0.5
_MASK64 = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids that packing needs.

    Args:
        classification: of `[CLS]`.
        separator: of `[SEP]`.
        continues_word: `[vocabulary size]` boolean, true for the pieces inside a word.
    """

    classification: int
    separator: int
    continues_word: object


@dataclasses.dataclass
class Documents:
    """Documents as one array of tokens.

    Args:
        token_ids: `[tokens]` integers.
        sentence_lengths: `[sentences]` number of tokens of each sentence, none 0.
        document_sentences: `[documents]` number of sentences of each document.
    """

    token_ids: object
    sentence_lengths: object
    document_sentences: object

    def __post_init__(self):
        self.sentence_ends = np.cumsum(self.sentence_lengths)
        self.first_sentences = np.cumsum(self.document_sentences) - self.document_sentences

    def __len__(self):
        return len(self.document_sentences)


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows as `records.encode_rows` takes them.

    Attributes:
        token_ids: `[rows, length]`, 0 where padded.
        segment_ids: `[rows, length]` booleans.
        document_starts: `[rows, length]` booleans.
        pair_labels: `[rows]`: 0, 1 or `NO_LABEL`.
        num_tokens: `[rows]`.
    """

    token_ids: object
    segment_ids: object
    document_starts: object
    pair_labels: object
    num_tokens: object

    def __len__(self):
        return len(self.num_tokens)


class Draws:
    """Random numbers as a function of a key and a counter: SplitMix64 (Steele, Lea, Flood 2014).

    Args:
        *key: integers, e.g. seed, shard, document.
    """

    def __init__(self, *key):
        state = 0
        for part in key:
            state = _mix(state ^ ((part + 0x9E3779B97F4A7C15) & _MASK64))
        self._state = state

    def bits(self):
        """Returns the next 64 random bits as an integer."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        return _mix(self._state)

    def below(self, limit):
        """Returns an integer from 0 to `limit - 1`."""
        return (self.bits() * limit) >> 64

    def happens(self, probability):
        """Returns whether something of this probability happens."""
        return self.bits() < probability * 2.0**64

    def heads(self, tosses):
        """Returns how many of `tosses` throws of a coin show heads."""
        total = 0
        while tosses > 0:
            total += (self.bits() & ((1 << min(tosses, 64)) - 1)).bit_count()
            tosses -= 64
        return total


def _mix(word):
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK64
    return word ^ (word >> 31)


class _Layout:
    """The places of a packing: runs of tokens to copy, special tokens to set; turned into rows all at once."""

    def __init__(self, length):
        self.length = length
        self.sources, self.targets, self.lengths = [], [], []
        self.classifications, self.separators, self.starts = [], [], []
        self.segments_from, self.segments_to = [], []
        self.num_tokens, self.labels = [], []

    def copy(self, source, target, length):
        self.sources.append(source)
        self.targets.append(target)
        self.lengths.append(length)

    def rows(self, token_ids, special):
        """Returns `PackedRows`."""
        rows = len(self.num_tokens)
        ids = np.zeros(rows * self.length, token_ids.dtype)
        for part in range(0, len(self.lengths), _COPIES_AT_ONCE):
            chosen = slice(part, part + _COPIES_AT_ONCE)
            lengths = np.array(self.lengths[chosen], np.int64)
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            sources = np.repeat(np.array(self.sources[chosen], np.int64), lengths) + within
            ids[np.repeat(np.array(self.targets[chosen], np.int64), lengths) + within] = token_ids[sources]
        ids[np.array(self.classifications, np.int64)] = special.classification
        ids[np.array(self.separators, np.int64)] = special.separator
        starts = np.zeros(rows * self.length, bool)
        starts[np.array(self.starts, np.int64)] = True
        # +1 where a segment begins and -1 after it: the running sum is 1 inside.
        edges = np.zeros(rows * self.length + 1, np.int8)
        np.add.at(edges, np.array(self.segments_from, np.int64), 1)
        np.add.at(edges, np.array(self.segments_to, np.int64), -1)
        shape = (rows, self.length)
        return PackedRows(
            token_ids=ids.reshape(shape),
            segment_ids=np.cumsum(edges[:-1], dtype=np.int8).astype(bool).reshape(shape),
            document_starts=starts.reshape(shape),
            pair_labels=np.array(self.labels, np.int64) if self.labels else np.full(rows, NO_LABEL),
            num_tokens=np.array(self.num_tokens, np.int64),
        )


def pack_full_sentences(documents, length, special):
    """Packs documents as RoBERTa does, see the module.

    Args:
        documents: `Documents`.
        length: tokens in a row.
        special: `SpecialIds`.

    Returns:
        `PackedRows`; only the rests that are too short for a piece are padded.
    """
    layout = _Layout(length)
    continues = special.continues_word[documents.token_ids]
    sentence_ends = np.concatenate([[0], documents.sentence_ends])
    ends = sentence_ends[documents.first_sentences + documents.document_sentences].tolist()
    shortest = min(_SHORTEST_PIECE, length)
    row, used, start = 0, 0, 0
    for end in ends:
        while start < end:
            if length - used < shortest or (used and length - used < end - start + 2 and length - used < 2 * shortest):
                layout.num_tokens.append(used)
                row, used = row + 1, 0
            room = length - used - 2
            stop = end if end - start <= room else _word_start(continues, start, start + room)
            place = row * length + used
            layout.classifications.append(place)
            layout.starts.append(place)
            layout.copy(start, place + 1, stop - start)
            layout.separators.append(place + 1 + stop - start)
            used += stop - start + 2
            start = stop
    if used:
        layout.num_tokens.append(used)
    return layout.rows(documents.token_ids, special)


def _word_start(continues, start, stop):
    """The last place from `stop` backwards where a word begins, or `stop` where a word is as long as all that."""
    place = stop
    while place > start and continues[place]:
        place -= 1
    return place if place > start else stop


def pack_sentence_pairs(documents, length, special, *, mode, seed, shard, short_rows=0.1):
    """Packs documents as pairs of segments, see the module.

    Args:
        documents: `Documents`.
        length: tokens in a row.
        special: `SpecialIds`.
        mode: `sentence_pair_nsp` or `sentence_pair_sop`.
        seed: integer.
        shard: integer that stands for the shard.
        short_rows: share of the pairs that are made shorter than a row, as in BERT, so that pretraining sees those too.

    Returns:
        `PackedRows`.
    """
    layout = _Layout(length)
    # A sentence that fills a row alone would have to be cut away to make room for another: its parts make pairs.
    documents = _with_shorter_sentences(documents, max(1, (length - 3) // 2))
    packer = _PairPacker(documents, length - 3, mode, short_rows)
    for number in range(len(documents)):
        draws = Draws(seed, shard, number)
        for (a, a_length), (b, b_length), label in packer.pairs(number, draws):
            place = len(layout.num_tokens) * length
            layout.classifications.append(place)
            layout.starts.append(place)
            layout.copy(a, place + 1, a_length)
            middle = place + 1 + a_length
            layout.copy(b, middle + 1, b_length)
            end = middle + 1 + b_length
            layout.separators += (middle, end)
            layout.segments_from.append(middle + 1)
            layout.segments_to.append(end + 1)
            layout.num_tokens.append(end + 1 - place)
            layout.labels.append(label)
    return layout.rows(documents.token_ids, special)


def _with_shorter_sentences(documents, longest):
    """The same documents with sentences over `longest` tokens divided into parts of nearly equal length."""
    lengths = np.asarray(documents.sentence_lengths, np.int64)
    if not len(lengths) or lengths.max() <= longest:
        return documents
    parts = -(-lengths // longest)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    whole, rest = np.repeat(lengths // parts, parts), np.repeat(lengths % parts, parts)
    return Documents(
        token_ids=documents.token_ids,
        sentence_lengths=whole + (number < rest),
        document_sentences=np.add.reduceat(parts, documents.first_sentences),
    )


class _PairPacker:
    """Chooses the pairs of segments of a shard."""

    def __init__(self, documents, room, mode, short_rows):
        self._room, self._next_sentence, self._short_rows = room, mode == "sentence_pair_nsp", short_rows
        # Lists: single elements of arrays are slow.
        self._ends = documents.sentence_ends.tolist()
        self._lengths = documents.sentence_lengths.tolist()
        self._first = documents.first_sentences.tolist()
        self._count = documents.document_sentences.tolist()

    def _target(self, draws):
        """The number of tokens to aim at."""
        if self._short_rows and draws.happens(self._short_rows):
            return 2 + draws.below(self._room - 1)
        return self._room

    def pairs(self, number, draws):
        """Yields ((start, length) of A, (start, length) of B, label) of a document."""
        sentence = self._first[number]
        last = sentence + self._count[number]
        while sentence < last:
            target, begin, size = self._target(draws), sentence, 0
            while sentence < last and size < target:
                size += self._lengths[sentence]
                sentence += 1
            start = self._ends[begin] - self._lengths[begin]
            if size < 2:
                continue  # a last sentence of one token makes no pair
            if sentence - begin > 1:
                middle = self._ends[begin + draws.below(sentence - begin - 1)]
            else:
                middle = start + size // 2  # a single sentence: its halves
            a, b, label = (start, middle - start), (middle, start + size - middle), 0
            if self._next_sentence:
                if len(self._first) > 1 and draws.happens(_NSP_RANDOM_SHARE):
                    label = 1
                    if sentence - begin > 1:
                        # The unused second half is put back, as BERT does; nothing of a document is lost.
                        while self._ends[sentence - 1] > middle:
                            sentence -= 1
                    else:
                        a = (start, size)
                    b = self._elsewhere(number, max(target - a[1], 1), draws)
            elif draws.happens(_SOP_SWAPPED_SHARE):
                a, b, label = b, a, 1
            yield *self._cut(a, b, draws), label

    def _elsewhere(self, number, size, draws):
        """Sentences of another document from a random one on, of about `size` tokens."""
        other = draws.below(len(self._first) - 1)
        other += other >= number
        sentence = self._first[other] + draws.below(self._count[other])
        start = self._ends[sentence] - self._lengths[sentence]
        last = self._first[other] + self._count[other] - 1
        while sentence < last and self._ends[sentence] - start < size:
            sentence += 1
        return start, self._ends[sentence] - start

    def _cut(self, a, b, draws):
        """Takes tokens from the front or the back of the longer segment, at random, until the pair fits."""
        (a_start, a_length), (b_start, b_length) = a, b
        excess = a_length + b_length - self._room
        if excess <= 0:
            return a, b
        # One token after the other is taken from the longer segment, from B where they are equal.
        a_cut = min(excess, max(0, a_length - b_length))
        b_cut = min(excess - a_cut, max(0, b_length - a_length))
        rest = excess - a_cut - b_cut
        a_cut, b_cut = a_cut + rest // 2, b_cut + (rest + 1) // 2
        a_front, b_front = draws.heads(a_cut), draws.heads(b_cut)
        return (a_start + a_front, a_length - a_cut), (b_start + b_front, b_length - b_cut)
