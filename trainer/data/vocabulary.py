"""Vocabularies of WordPieces: reading and checking `vocab.txt`, and learning one from the words of a corpus.

The learner is the byte-pair algorithm on characters (Sennrich, Haddow, Birch 2016, arXiv 1508.07909) with pieces
written as WordPiece does (`##` before those inside a word), as in Hugging Face `tokenizers`. It is our own because the
result must be the same in every run: that library's is not (ties are broken by the order of a hash table), and
`tensorflow_text.tools.wordpiece_vocab` takes minutes where this takes seconds.
"""

import collections
import dataclasses
import functools
import hashlib
import heapq
import itertools

import numpy as np

from trainer import storage
from trainer.errors import InputError

PADDING, UNKNOWN, CLASSIFICATION, SEPARATOR, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PADDING, UNKNOWN, CLASSIFICATION, SEPARATOR, MASK)
SUFFIX_MARK = "##"
_CHARACTER_COVERAGE = 0.9999  # of the characters of the corpus; the rarest would take room from useful pieces
_MOST_WORDS = 1_000_000  # distinct words to learn from, the most frequent ones


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The pieces of a vocabulary; a piece's id is its place.

    Args:
        pieces: tuple of strings.
        sha256: SHA-256 of the vocabulary file's content.
    """

    pieces: tuple
    sha256: str

    def __len__(self):
        return len(self.pieces)

    @functools.cached_property
    def ids(self):
        """Dictionary from piece to id."""
        return {piece: number for number, piece in enumerate(self.pieces)}

    @property
    def padding_id(self):
        """Id of `[PAD]`: always 0."""
        return self.ids[PADDING]

    @property
    def unknown_id(self):
        """Id of `[UNK]`."""
        return self.ids[UNKNOWN]

    @property
    def classification_id(self):
        """Id of `[CLS]`."""
        return self.ids[CLASSIFICATION]

    @property
    def separator_id(self):
        """Id of `[SEP]`."""
        return self.ids[SEPARATOR]

    @property
    def mask_id(self):
        """Id of `[MASK]`."""
        return self.ids[MASK]

    @functools.cached_property
    def continues_word(self):
        """`[size]` boolean array: true for the pieces inside a word (`##...`)."""
        return np.array([piece.startswith(SUFFIX_MARK) and len(piece) > len(SUFFIX_MARK) for piece in self.pieces])

    def text(self, ids):
        """Returns the text that ids stand for: pieces joined to words, words separated by spaces."""
        return " ".join(self.pieces[number] for number in ids).replace(" " + SUFFIX_MARK, "")

    def save(self, path):
        """Writes the vocabulary, one piece a line."""
        storage.write_bytes(path, file_content(self.pieces))


def file_content(pieces):
    """Returns the bytes of a vocabulary file: one piece a line."""
    return "".join(piece + "\n" for piece in pieces).encode("utf-8")


def make_vocabulary(pieces):
    """Returns a `Vocabulary` of pieces."""
    return Vocabulary(tuple(pieces), hashlib.sha256(file_content(pieces)).hexdigest())


def load_vocabulary(path):
    """Reads and checks a vocabulary file.

    Args:
        path: `vocab.txt`: one piece a line, UTF-8.

    Returns:
        `Vocabulary`.

    Raises:
        InputError: if it is missing, not UTF-8, empty, holds a piece twice, or lacks a special token or has `[PAD]`
            elsewhere than on the first line.
    """
    path = str(path)
    if not storage.exists(path) or storage.is_folder(path):
        raise InputError(f"there is no vocabulary file {path}. Give a vocab.txt, or learn one with a vocabulary size.")
    content = storage.read_bytes(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the vocabulary {path} is not UTF-8 at byte {error.start:,}: {error.reason}") from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    # Only the line end is cut off: a vocabulary may hold pieces that Python takes for white space.
    pieces = [line.removesuffix("\r") for line in lines]
    counts = collections.Counter(pieces)
    for piece in SPECIAL_TOKENS:
        if piece not in counts:
            near = next((other for other in pieces[:1000] if other.strip("[]<>").lower() == piece[1:-1].lower()), None)
            raise InputError(
                f"the vocabulary {path} lacks {piece}; it must hold {', '.join(SPECIAL_TOKENS)}"
                + (f". It has {near!r}: rename that line." if near else ".")
            )
    if pieces[0] != PADDING:
        raise InputError(
            f"the vocabulary {path} has {PADDING} on line {pieces.index(PADDING) + 1} and {pieces[0]!r} on the first: "
            f"{PADDING} must have id 0. Move it to the first line (weights trained with the old order need it too)."
        )
    twice = next((piece for piece, count in counts.items() if count > 1), None)
    if twice is not None:
        first = pieces.index(twice)
        raise InputError(
            f"the vocabulary {path} holds {twice!r} twice, on lines {first + 1} and "
            f"{pieces.index(twice, first + 1) + 1}: an id would be without a piece. Replace one of them, e.g. by "
            "[unused0]."
        )
    return Vocabulary(tuple(pieces), hashlib.sha256(content).hexdigest())


def learn_vocabulary(word_counts, size, *, progress=None):
    """Learns a vocabulary from the words of a corpus; the same words give the same vocabulary.

    Args:
        word_counts: dictionary from normalised word to the number of times it occurs.
        size: number of pieces wanted, special tokens included.
        progress: called with the number of pieces made so far now and then; None for not at all.

    Returns:
        `Vocabulary`: special tokens, characters, then pieces in the order they were made. It is smaller than `size`
        where the corpus has no more pieces to offer.

    Raises:
        InputError: if there are no words, or `size` leaves no room for the characters.
    """
    if not word_counts:
        raise InputError("cannot learn a vocabulary: the corpus holds no words.")
    words = sorted(word_counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_WORDS]
    alphabet = _frequent_characters(words)
    letters = set(alphabet)
    words = [(word, count) for word, count in words if letters.issuperset(word)]
    inside = sorted({character for word, _ in words for character in word[1:]})
    pieces = [*alphabet, *(SUFFIX_MARK + character for character in inside)]
    room = size - len(SPECIAL_TOKENS)
    if len(pieces) > room:
        raise InputError(
            f"a vocabulary of {size:,} pieces is too small: the characters of the corpus alone make {len(pieces):,} "
            f"pieces. Ask for at least {len(pieces) + len(SPECIAL_TOKENS) + 1:,}, better several times that."
        )
    _merge(pieces, words, room, progress)
    return make_vocabulary((*SPECIAL_TOKENS, *pieces))


def _frequent_characters(words):
    """The sorted characters that make up all but a tiny share of a corpus."""
    counts = collections.Counter()
    for word, count in words:
        for character in word:
            counts[character] += count
    wanted = _CHARACTER_COVERAGE * sum(counts.values())
    kept, covered = [], 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= wanted:
            break
        kept.append(character)
        covered += count
    return sorted(kept)


def _merge(pieces, words, room, progress):
    """Appends pieces: again and again the most frequent pair of neighbours becomes one.

    Ties go to the pair whose pieces were made first, so that the result does not depend on the order of any table.
    """
    ids = {piece: number for number, piece in enumerate(pieces)}
    symbols = [[ids[word[0]], *(ids[SUFFIX_MARK + character] for character in word[1:])] for word, _ in words]
    counts = [count for _, count in words]
    pair_counts, places = collections.Counter(), collections.defaultdict(set)
    for place, word in enumerate(symbols):
        for pair in itertools.pairwise(word):
            pair_counts[pair] += counts[place]
            places[pair].add(place)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while len(pieces) < room and heap:
        negative, pair = heapq.heappop(heap)
        current = pair_counts.get(pair, 0)
        if -negative != current:  # the count has fallen since it was noted
            if current > 0:
                heapq.heappush(heap, (-current, pair))
            continue
        if current < 2:
            break
        piece = pieces[pair[0]] + pieces[pair[1]].removeprefix(SUFFIX_MARK)
        if piece in ids:  # made before from other halves: the same piece, so the same id
            new = ids[piece]
        else:
            new = ids[piece] = len(pieces)
            pieces.append(piece)
            if progress is not None and len(pieces) % 256 == 0:
                progress(len(pieces))
        changed = set()
        for place in places.pop(pair):
            _merge_in_word(symbols[place], pair, new, counts[place], pair_counts, places, place, changed)
        del pair_counts[pair]
        changed.discard(pair)
        for other in changed:
            heapq.heappush(heap, (-pair_counts[other], other))


def _merge_in_word(word, pair, new, count, pair_counts, places, place, changed):
    """Replaces a pair in one word by its piece, and keeps the counts of the pairs around it."""
    left, right = pair
    i = 0
    while i < len(word) - 1:
        if word[i] != left or word[i + 1] != right:
            i += 1
            continue
        if i > 0:
            pair_counts[word[i - 1], left] -= count
            pair_counts[word[i - 1], new] += count
            places[word[i - 1], new].add(place)
            changed.add((word[i - 1], new))
        if i + 2 < len(word):
            pair_counts[right, word[i + 2]] -= count
            pair_counts[new, word[i + 2]] += count
            places[new, word[i + 2]].add(place)
            changed.add((new, word[i + 2]))
        word[i : i + 2] = [new]
        i += 1
