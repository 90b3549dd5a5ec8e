"""Packed rows hold the documents, whole and in order, and pairs are what their labels say."""

import numpy as np
import pytest

from trainer.data.packing import Documents, Draws, SpecialIds, _PairPacker, pack_full_sentences, pack_sentence_pairs
from trainer.data.records import NO_LABEL

CLS, SEP, FIRST = 1, 2, 1000
VOCABULARY = 60_000


def make_documents(rng, count, longest_sentence=20, most_sentences=12):
    """Documents of consecutive ids, so that an id tells where it comes from; every fourth piece continues a word."""
    sentences = rng.integers(1, most_sentences + 1, count)
    lengths = rng.integers(1, longest_sentence + 1, sentences.sum())
    ids = np.arange(FIRST, FIRST + lengths.sum()).astype("<u2")
    continues = np.zeros(VOCABULARY, bool)
    continues[FIRST + 3 :: 4] = True
    return Documents(ids, lengths, sentences), SpecialIds(CLS, SEP, continues)


def document_of(documents):
    """`[tokens]` number of the document of each token."""
    lengths = np.add.reduceat(documents.sentence_lengths, documents.first_sentences)
    return np.repeat(np.arange(len(documents)), lengths)


@pytest.mark.parametrize("length", [4, 9, 32, 128])
def test_full_sentences_hold_every_token_once_in_order_with_boundaries(length):
    documents, special = make_documents(np.random.default_rng(length), 40)
    rows = pack_full_sentences(documents, length, special)
    inside = np.arange(length) < rows.num_tokens[:, None]
    assert not rows.token_ids[~inside].any()
    assert np.array_equal(rows.token_ids == CLS, rows.document_starts)
    tokens = rows.token_ids[inside]
    assert np.array_equal(tokens[tokens >= FIRST], documents.token_ids)
    origin = document_of(documents)
    for ids, starts, count in zip(rows.token_ids, rows.document_starts, rows.num_tokens, strict=True):
        for piece in np.split(ids[:count], np.flatnonzero(starts[:count]))[1:]:
            assert (piece[0], piece[-1]) == (CLS, SEP)
            assert len(set(origin[piece[1:-1].astype(int) - FIRST])) == 1
    assert set(rows.pair_labels) == {NO_LABEL}


def test_full_sentences_go_on_at_the_start_of_a_word_and_waste_little():
    documents, special = make_documents(np.random.default_rng(0), 60, most_sentences=40)
    rows = pack_full_sentences(documents, 32, special)
    first = rows.token_ids[:, 1]
    begins_document = np.isin(first, documents.token_ids[np.flatnonzero(np.diff(document_of(documents), prepend=-1))])
    assert not special.continues_word[first[~begins_document]].any()
    assert 1 - rows.num_tokens.sum() / rows.token_ids.size < 0.1


def pairs_of(rows):
    """Yields (ids of A, ids of B, label) and checks the frame around them."""
    for ids, segments, starts, label, count in zip(
        rows.token_ids, rows.segment_ids, rows.document_starts, rows.pair_labels, rows.num_tokens, strict=True
    ):
        middle, end = np.flatnonzero(ids == SEP)
        assert (ids[0], end) == (CLS, count - 1)
        assert np.array_equal(np.flatnonzero(starts), [0])
        assert np.array_equal(np.flatnonzero(segments), np.arange(middle + 1, count))
        yield ids[1:middle].astype(int), ids[middle + 1 : end].astype(int), label


def test_next_sentence_labels_tell_whether_b_follows_a_or_is_of_another_document():
    documents, special = make_documents(np.random.default_rng(1), 300)
    rows = pack_sentence_pairs(documents, 64, special, mode="sentence_pair_nsp", seed=0, shard=0)
    origin = document_of(documents)
    for a, b, label in pairs_of(rows):
        assert len(a) and len(b) and np.all(np.diff(a) == 1) and np.all(np.diff(b) == 1)
        same_document = origin[a[0] - FIRST] == origin[b[0] - FIRST]
        assert same_document == (label == 0)
        assert label == 1 or b[0] > a[-1]
    assert 0.4 < rows.pair_labels.mean() < 0.6
    assert np.isin(documents.token_ids, rows.token_ids).mean() > 0.95  # what a random B displaced was put back


def test_sentence_order_labels_tell_whether_the_two_are_swapped():
    documents, special = make_documents(np.random.default_rng(2), 300)
    rows = pack_sentence_pairs(documents, 64, special, mode="sentence_pair_sop", seed=0, shard=0)
    origin = document_of(documents)
    for a, b, label in pairs_of(rows):
        assert origin[a[0] - FIRST] == origin[b[0] - FIRST]
        assert (a[0] > b[0]) == (label == 1)
    assert 0.4 < rows.pair_labels.mean() < 0.6


def test_a_shard_of_one_document_has_no_random_next_sentence():
    documents, special = make_documents(np.random.default_rng(3), 1)
    rows = pack_sentence_pairs(documents, 32, special, mode="sentence_pair_nsp", seed=0, shard=0)
    assert len(rows) and not rows.pair_labels.any()


def test_sentences_longer_than_a_row_are_not_cut_away():
    documents, special = make_documents(np.random.default_rng(4), 5, longest_sentence=400)
    rows = pack_sentence_pairs(documents, 32, special, mode="sentence_pair_sop", seed=0, shard=0, short_rows=0)
    assert np.isin(documents.token_ids, rows.token_ids).mean() > 0.6


def test_pairs_depend_on_seed_and_shard_only():
    documents, special = make_documents(np.random.default_rng(5), 30)

    def ids(seed, shard):
        mode = "sentence_pair_nsp"
        return pack_sentence_pairs(documents, 32, special, mode=mode, seed=seed, shard=shard).token_ids.tobytes()

    assert ids(0, 0) == ids(0, 0)
    assert len({ids(0, 0), ids(1, 0), ids(0, 1)}) == 3


def test_cutting_a_pair_leaves_the_lengths_that_googles_loop_leaves():
    packer = _PairPacker(make_documents(np.random.default_rng(6), 1)[0], 20, "sentence_pair_nsp", 0)
    for a in range(1, 45):
        for b in range(1, 45):
            expected = [a, b]
            while sum(expected) > 20:  # truncate_seq_pair of create_pretraining_data.py
                expected[0 if expected[0] > expected[1] else 1] -= 1
            (a_start, a_length), (b_start, b_length) = packer._cut((0, a), (100, b), Draws(a, b))
            assert [a_length, b_length] == expected
            assert 0 <= a_start <= a - a_length and 0 <= b_start - 100 <= b - b_length


def test_draws_are_uniform():
    draws = Draws(1, 2, 3)
    counts = np.bincount([draws.below(10) for _ in range(20_000)], minlength=10)
    assert len(counts) == 10 and np.abs(counts / 20_000 - 0.1).max() < 0.01
    assert abs(np.mean([draws.heads(100) for _ in range(2000)]) - 50) < 0.6
    assert abs(np.mean([draws.happens(0.1) for _ in range(20_000)]) - 0.1) < 0.01
