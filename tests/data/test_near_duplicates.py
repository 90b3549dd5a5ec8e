"""Near-duplicates are those that a comparison of all pairs finds, whatever the units and partitions."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from trainer.data import near_duplicates
from trainer.data.merging import UnitSpills
from trainer.data.near_duplicates import Bands, PartitionJob, dropped_documents, find_near_duplicates, signatures
from trainer.data.preparation_work import Assignment
from trainer.data.spills import write_spill
from trainer.errors import InputError

ASSIGNMENT = Assignment(held_out_below=1 << 61, train_shards=3, held_out_shards=1)


def shingles(document):
    return {tuple(document[k : k + 5]) for k in range(max(1, len(document) - 4))}


def similarity(one, other):
    one, other = shingles(one), shingles(other)
    return len(one & other) / len(one | other)


def text_hash(document):
    return hashlib.blake2b(bytes(str(list(document)), "ascii"), digest_size=16).digest()


def signatures_of(documents):
    return signatures(np.concatenate(documents), [len(document) for document in documents])


def altered(rng, document, changes):
    """A copy of a document with some tokens replaced by others."""
    copy = document.copy()
    copy[rng.choice(len(copy), changes, replace=False)] = rng.integers(5, 30_000, changes)
    return copy


def documents_with_copies(rng, originals=60):
    """Documents, and copies of each with few to many changes."""
    documents = []
    for _ in range(originals):
        document = rng.integers(5, 30_000, rng.integers(30, 300)).astype(np.uint16)
        documents += [document, *(altered(rng, document, len(document) // part) for part in (100, 40, 15, 4))]
    return documents


def found(tmp_path, documents, *, threshold=0.8, partitions=1, units=1):
    """The places of the documents that are dropped, all steps run."""
    bands = Bands(threshold, partitions)
    hashes = [text_hash(document) for document in documents]
    paths = []
    for number, places in enumerate(np.array_split(np.arange(len(documents)), units)):
        entries = bands.entries(
            [hashes[place] for place in places],
            np.concatenate([documents[place] for place in places]),
            [len(documents[place]) for place in places],
        )
        path = str(tmp_path / f"{partitions}-{units}-{number}.spill")
        write_spill(path, [b""] * ASSIGNMENT.num_shards + [each.tobytes() for each in entries], {})
        paths.append(path)
    results = []
    for partition in range(partitions):
        path = str(tmp_path / f"dropped-{partition}.spill")
        section = ASSIGNMENT.num_shards + partition
        find_near_duplicates(PartitionJob(section, UnitSpills(tuple(paths)), bands.least_equal, ASSIGNMENT, path))
        results.append(path)
    dropped = [dropped_documents(UnitSpills(tuple(results)), shard) for shard in range(ASSIGNMENT.num_shards)]
    for shard, of_shard in enumerate(dropped):
        assert all(ASSIGNMENT.shard(key) == shard for key in of_shard)
    return {place for place, key in enumerate(hashes) if key in set().union(*dropped)}


def test_signatures_estimate_the_jaccard_similarity_of_shingles():
    rng = np.random.default_rng(1)
    errors = []
    for length, changes in itertools.product((8, 50, 400), (0, 1, 3, 6)):
        for _ in range(20):
            one = rng.integers(0, 30_000, length)
            other = altered(rng, one, changes)
            pair = signatures_of([one, other])
            errors.append(np.mean(pair[0] == pair[1]) - similarity(one, other))
    assert abs(np.mean(errors)) < 0.01  # unbiased
    assert np.std(errors) < 0.045  # sqrt(J (1 - J) / 128) is 0.044 at most


def test_a_signature_depends_on_its_document_alone():
    documents = [np.array(tokens) for tokens in ([7], [7, 8, 9], [7, 8, 9, 0], [1, 2, 3, 4, 5, 6], [9] * 40)]
    alone = [signatures_of([document])[0] for document in documents]
    together = signatures_of(documents)
    assert np.array_equal(together, alone)
    assert len({row.tobytes() for row in together}) == len(documents)  # a token of id 0 is no padding


def test_the_documents_dropped_are_those_that_a_comparison_of_all_pairs_finds(tmp_path):
    documents = documents_with_copies(np.random.default_rng(2))
    bands = Bands(0.8, 1)
    values = signatures_of(documents)
    seen = values * np.uint32(0x9E3779B1) >> np.uint32(24)
    in_bands = values[:, : 128 // bands.rows * bands.rows].reshape(len(documents), -1, bands.rows)
    keys = [text_hash(document) for document in documents]
    expected = set()
    for one, key in enumerate(keys):
        smaller = np.array([other < key for other in keys])
        meet = (in_bands == in_bands[one]).all(axis=2).any(axis=1)
        similar = (seen == seen[one]).sum(axis=1) >= bands.least_equal
        if np.any(smaller & meet & similar):
            expected.add(one)
    assert len(expected) > 50 and found(tmp_path, documents) == expected


def test_similar_documents_are_found_and_others_kept(tmp_path):
    documents = documents_with_copies(np.random.default_rng(3))
    keys = [text_hash(document) for document in documents]
    dropped = found(tmp_path, documents)
    closest = []  # of a document's copies and original with smaller keys; others share next to nothing with it
    for place, key in enumerate(keys):
        family = range(place - place % 5, place - place % 5 + 5)
        closest.append(max((similarity(documents[place], documents[x]) for x in family if keys[x] < key), default=0.0))
    clear = {place for place, each in enumerate(closest) if each > 0.88}
    assert len(clear) > 40 and len(dropped & clear) > 0.97 * len(clear)
    assert not any(closest[place] < 0.65 for place in dropped)


def test_units_partitions_and_what_is_held_in_memory_do_not_change_what_is_dropped(tmp_path, monkeypatch):
    documents = documents_with_copies(np.random.default_rng(4))
    expected = found(tmp_path, documents)
    assert found(tmp_path, documents, partitions=7) == expected
    assert found(tmp_path, documents[::-1], units=5) == {len(documents) - 1 - place for place in expected}
    monkeypatch.setattr(near_duplicates, "_ENTRIES_HELD", 100)
    assert found(tmp_path, documents, partitions=3, units=9) == expected


def test_of_a_crowded_bucket_all_are_compared_with_the_smallest_keys_only(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    original = rng.integers(5, 30_000, 2000)
    documents = [altered(rng, original, 1) for _ in range(200)]
    monkeypatch.setattr(near_duplicates, "_ENTRIES_HELD", 500)
    monkeypatch.setattr(near_duplicates, "_MOST_COMPARED", 2)
    sizes, smallest = [], near_duplicates._smallest

    def recorded(entries):
        sizes.append(len(smallest(entries)))
        return smallest(entries)

    monkeypatch.setattr(near_duplicates, "_smallest", recorded)
    dropped = found(tmp_path, documents, units=20)
    assert len(dropped) == 199  # all but the one with the smallest key
    assert found(tmp_path, documents, units=1) == dropped
    assert max(sizes) < 16 * 2 + 200  # 200 documents have 3,200 entries


def test_equal_texts_are_left_to_the_search_for_duplicates(tmp_path):
    document = np.arange(5, 100)
    assert found(tmp_path, [document, document, document[::-1]]) == set()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_documents_as_similar_as_the_threshold_meet_in_nine_of_ten_cases(threshold):
    bands = Bands(threshold, 1)
    assert 1 - (1 - threshold**bands.rows) ** (128 // bands.rows) >= 0.9
    assert abs(bands.least_equal / 128 - threshold) < 0.01
    assert dataclasses.replace(bands, num_partitions=9).rows == bands.rows


@pytest.mark.parametrize("threshold", [0.0, 0.3, 80])
def test_a_threshold_that_cannot_work_is_refused(threshold):
    with pytest.raises(InputError, match=r"near_duplicates is a similarity from 0\.5 to 1"):
        near_duplicates.check_threshold(threshold)
