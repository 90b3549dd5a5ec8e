"""Vocabularies: what is wrong with a file is said; learning is the byte-pair algorithm and has one result."""

import collections
import itertools
import random

import pytest

from trainer.data.vocabulary import SPECIAL_TOKENS, learn_vocabulary, load_vocabulary, make_vocabulary
from trainer.errors import InputError

COUNTS = {"low": 5, "lower": 2, "newest": 6, "widest": 3, "lowest": 4, "new": 7, "banana": 3, "!": 9, "aaaa": 4}


def pieces_by_the_book(counts, merges):
    """Byte pairs counted anew for every merge: slow and plain. Ties go to the pair made first."""
    words = {word: [word[0], *("##" + c for c in word[1:])] for word in counts}
    pieces = sorted({w[0] for w in words} | {c for w in words for c in w})
    pieces += sorted({piece for parts in words.values() for piece in parts[1:]})
    for _ in range(merges):
        pairs = collections.Counter()
        for word, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pieces.index(pair[0]), pieces.index(pair[1])), default=None)
        if best is None or pairs[best] < 2:
            break
        joined = best[0] + best[1].removeprefix("##")
        if joined not in pieces:
            pieces.append(joined)
        for word, parts in words.items():
            merged, place = [], 0
            while place < len(parts):
                if tuple(parts[place : place + 2]) == best:
                    merged.append(joined)
                    place += 2
                else:
                    merged.append(parts[place])
                    place += 1
            words[word] = merged
    return pieces


def test_learning_merges_the_most_frequent_pair_again_and_again():
    learned = learn_vocabulary(COUNTS, 200).pieces
    assert learned[:5] == SPECIAL_TOKENS
    assert list(learned[5:]) == pieces_by_the_book(COUNTS, 200)


def test_learning_does_not_depend_on_the_order_of_the_words():
    words = list(COUNTS.items())
    expected = learn_vocabulary(COUNTS, 45)
    for seed in range(5):
        random.Random(seed).shuffle(words)
        assert learn_vocabulary(dict(words), 45) == expected
    assert len(expected) == 45


def test_learning_refuses_what_leaves_no_room():
    with pytest.raises(InputError, match="Ask for at least"):
        learn_vocabulary(COUNTS, 12)
    with pytest.raises(InputError, match="no words"):
        learn_vocabulary({}, 100)


def test_a_saved_vocabulary_is_read_back(tmp_path):
    vocabulary = make_vocabulary([*SPECIAL_TOKENS, "a", "##b", "\u2028", "中"])
    vocabulary.save(tmp_path / "vocab.txt")
    again = load_vocabulary(tmp_path / "vocab.txt")
    assert again == vocabulary
    assert again.continues_word.tolist() == [False] * 6 + [True, False, False]
    assert (again.padding_id, again.mask_id, again.text([5, 6, 8])) == (0, 4, "ab 中")


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"], r"\[PAD\] on line 2.*must have id 0"),
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<mask>"], r"lacks \[MASK\].*'<mask>': rename"),
        ([*SPECIAL_TOKENS, "a", "b", "a"], r"'a' twice, on lines 6 and 8"),
    ],
)
def test_a_vocabulary_that_cannot_work_is_refused_with_the_reason(tmp_path, pieces, message):
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    with pytest.raises(InputError, match=message):
        load_vocabulary(tmp_path / "vocab.txt")


def test_a_missing_or_undecodable_vocabulary_is_named(tmp_path):
    with pytest.raises(InputError, match="no vocabulary file"):
        load_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(InputError, match="UTF-8 at byte 6"):
        load_vocabulary(tmp_path / "vocab.txt")
