"""Shards of a bucket that are kept on a local disk."""

import os
import subprocess
import sys

import numpy as np
import pytest
from data.small_data_sets import write_data_set

from trainer import storage
from trainer.data.corpora import Corpus
from trainer.data.lanes import training_dataset
from trainer.data.shard_cache import ShardCache
from trainer.errors import InputError
from trainer.storage.synchronization import compare_folders, synchronize

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def corpus(bucket, tmp_path):
    """A data set in a bucket; its files are in `tmp_path / "data"`, too."""
    local, remote = str(tmp_path / "data"), f"{bucket}/set"
    write_data_set(local, [200, 300, 100])
    synchronize(local, remote, compare_folders(local, remote))
    return Corpus(remote)


def filled(folder, corpus, max_bytes=1 << 30):
    """Fills a cache; returns it, the corpus with it, and what was reported."""
    told = []
    cache = ShardCache(str(folder), max_bytes, told.append)
    cached = Corpus(corpus.folder, cached_in=cache.folder_for(corpus.folder, corpus.manifest))
    cache.start()
    assert cache.wait(60)
    return cache, cached, told


def rows(corpus, count=8):
    dataset = training_dataset(
        [corpus], seed=1, lanes=4, start_step=0, global_batch=16, rows_per_element=16, block_rows=8
    )
    return np.concatenate([element["token_ids"] for element in dataset.take(count).as_numpy_iterator()])


def test_rows_come_from_the_cache_in_the_same_order_and_the_bucket_is_left_alone(emulator, corpus, tmp_path):
    expected = rows(Corpus(str(tmp_path / "data")))
    np.testing.assert_array_equal(rows(corpus), expected)
    cache, cached, told = filled(tmp_path / "cache", corpus)
    assert len(told) == 1 and told[0].startswith("all 3 shards of gs://")
    mark = emulator.requests.mark()
    np.testing.assert_array_equal(rows(cached), expected)
    assert not emulator.requests.since(mark, "read *.tfrecord*")
    cache.close()
    # A later run finds them there.
    mark = emulator.requests.mark()
    cache, _, told = filled(tmp_path / "cache", corpus)
    assert told[0].startswith("all 3 shards") and not emulator.requests.since(mark, "read *.tfrecord*")
    cache.close()


def test_a_full_cache_holds_what_fits_and_the_rest_is_read_from_the_bucket(corpus, tmp_path):
    sizes = [shard.bytes for shard in corpus.manifest.splits["train"]]
    cache, cached, told = filled(tmp_path / "cache", corpus, max_bytes=sum(sizes[:2]) + 1000)
    assert told[0].startswith("2 of 3 shards") and "cache_gigabytes" in told[0]
    np.testing.assert_array_equal(rows(cached), rows(Corpus(str(tmp_path / "data"))))
    cache.close()


def test_data_sets_that_nobody_uses_make_room_and_others_stay(bucket, corpus, tmp_path):
    local = str(tmp_path / "other")
    write_data_set(local, [200, 300, 100], first_id=1000)
    synchronize(local, f"{bucket}/other", compare_folders(local, f"{bucket}/other"))
    room = int(1.5 * sum(shard.bytes for shard in corpus.manifest.splits["train"]))
    first, _, _ = filled(tmp_path / "cache", corpus, room)
    second, _, told = filled(tmp_path / "cache", Corpus(f"{bucket}/other"), room)
    assert "which is full" in told[0]  # the first is in use
    first.close()
    second.close()
    third, _, told = filled(tmp_path / "cache", Corpus(f"{bucket}/other"), room)
    assert told[0].startswith("all 3 shards")
    third.close()
    assert len([entry for entry in os.scandir(tmp_path / "cache") if entry.is_dir()]) == 1


PROGRAM = """
import sys
from trainer.data.corpora import Corpus
from trainer.data.shard_cache import ShardCache
corpus = Corpus(sys.argv[1])
cache = ShardCache(sys.argv[2], 1 << 30, print)
cache.folder_for(corpus.folder, corpus.manifest)
cache.start()
assert cache.wait(60)
"""


def test_processes_share_a_cache_and_each_shard_is_downloaded_once(emulator, corpus, tmp_path):
    mark = emulator.requests.mark()
    environment = os.environ | emulator.environment | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", PROGRAM, corpus.folder, str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) for _ in range(2)
    ]
    for process in processes:
        assert "all 3 shards" in process.communicate(timeout=120)[0] and process.returncode == 0
    assert len(emulator.requests.since(mark, "read *.tfrecord*")) == 3


def test_what_was_left_half_done_or_altered_is_downloaded_again(corpus, tmp_path):
    cache, cached, _ = filled(tmp_path / "cache", corpus)
    cache.close()
    names = sorted(name for name in os.listdir(cached.cached_in) if "tfrecord" in name)
    with open(os.path.join(cached.cached_in, names[0]), "r+b") as file:
        file.truncate(100)
    for name in ("x.part-1", f"{names[1]}.unchecked"):
        open(os.path.join(cached.cached_in, name), "wb").close()
    os.remove(os.path.join(cached.cached_in, names[2]))
    cache, cached, told = filled(tmp_path / "cache", corpus)
    assert told[0].startswith("all 3 shards")
    assert sorted(name for name in os.listdir(cached.cached_in) if not name.endswith(".lock")) == names
    for name in names:
        path = os.path.join(cached.cached_in, name)
        assert storage.file_checksum(path) == storage.file_checksum(f"{corpus.folder}/{name}")
    cache.close()


def test_a_bucket_that_refuses_does_not_end_the_run(emulator, corpus, tmp_path):
    _ = corpus.manifest
    emulator.faults.add("read *.tfrecord*", "status", status=403, times=None)
    cache, _, told = filled(tmp_path / "cache", corpus)
    assert "is not filled" in told[0] and "is read instead" in told[0]
    cache.close()


def test_a_cache_lies_on_a_disk(bucket):
    with pytest.raises(InputError, match="must lie on a disk of this machine"):
        ShardCache(f"{bucket}/cache", 1, print)
