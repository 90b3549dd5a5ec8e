"""What goes through Google's client: whole objects, verified, and changes on condition."""

import os
import threading

import pytest

from trainer import storage
from trainer.errors import InputError, StorageFailed
from trainer.storage import google_cloud

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return str(path)


def test_a_path_is_a_bucket_and_a_name():
    assert google_cloud.split("gs://bucket/a/b.txt") == ("bucket", "a/b.txt")
    assert google_cloud.split("gs://bucket") == ("bucket", "")
    for path in ("/tmp/x", "gs:///x", "gs://"):
        with pytest.raises(InputError, match="gs://bucket/folder/file"):
            google_cloud.split(path)


def test_files_go_up_and_come_down_as_they_are(bucket, file, tmp_path):
    stored = google_cloud.upload(file, f"{bucket}/a/x")
    assert (stored.bytes, stored.crc32c) == (len(CONTENT), storage.checksum(CONTENT))
    assert google_cloud.describe(f"{bucket}/a/x") == stored
    assert storage.file_checksum(f"{bucket}/a/x") == storage.checksum(CONTENT)
    assert google_cloud.download(f"{bucket}/a/x", str(tmp_path / "back")) == stored
    assert (tmp_path / "back").read_bytes() == CONTENT == storage.read_bytes(f"{bucket}/a/x")
    assert google_cloud.objects_in(f"{bucket}/a") == {"x": stored}
    assert google_cloud.describe(f"{bucket}/nothing") is None
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{bucket}/nothing")


@pytest.mark.parametrize("kind", ["corrupted", "truncated", "reset_in_body", "reset", "status"])
def test_a_download_that_is_disturbed_once_comes_whole(emulator, bucket, tmp_path, kind):
    emulator.put(f"{bucket}/x", CONTENT)
    fault = emulator.faults.add(f"read {bucket}/x", kind)
    google_cloud.download(f"{bucket}/x", str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == CONTENT and emulator.faults.hits(fault) == 1
    emulator.faults.add(f"read {bucket}/x", kind)
    assert storage.read_bytes(f"{bucket}/x") == CONTENT


def test_faults_that_pass_are_counted(emulator, bucket):
    emulator.put(f"{bucket}/x", b"x")
    before = google_cloud.retries()
    fault = emulator.faults.add(f"read {bucket}/x", "status", status=503, times=2)
    assert storage.read_bytes(f"{bucket}/x") == b"x" and emulator.faults.hits(fault) == 2
    assert google_cloud.retries() == before + 2


def test_a_download_that_is_always_damaged_is_refused_and_leaves_nothing(emulator, bucket, tmp_path):
    emulator.put(f"{bucket}/x", CONTENT)
    emulator.faults.add(f"read {bucket}/x", "corrupted", times=None)
    with pytest.raises(StorageFailed, match=r"x arrives damaged: .* where the service says"):
        google_cloud.download(f"{bucket}/x", str(tmp_path / "x"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["corrupted", "reset", "lost_answer", "status"])
def test_an_upload_that_is_disturbed_arrives_whole_or_not_at_all(emulator, bucket, file, kind):
    emulator.faults.add(f"write {bucket}/*", kind)
    if kind == "corrupted":
        with pytest.raises(StorageFailed):
            google_cloud.upload(file, f"{bucket}/x")
        assert emulator.get(f"{bucket}/x") is None
    else:
        google_cloud.upload(file, f"{bucket}/x")
        assert emulator.get(f"{bucket}/x") == CONTENT


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "gcloud auth application-default login"),
        (403, "roles/storage.objectUser"),
        (404, "no such bucket or object"),
    ],
)
def test_what_stays_refused_says_what_to_do(emulator, bucket, file, status, message):
    emulator.faults.add("*", "status", status=status, times=None)
    with pytest.raises(StorageFailed, match=message):
        google_cloud.upload(file, f"{bucket}/x")
    with pytest.raises(StorageFailed, match=message):
        google_cloud.objects_in(bucket)


def test_a_missing_bucket_is_no_missing_object(bucket):
    with pytest.raises(StorageFailed, match="no such bucket"):
        google_cloud.read("gs://bucket-that-is-not-there/x")


def test_writes_on_condition(bucket):
    path = f"{bucket}/lock"
    assert google_cloud.read(path) == (None, 0)
    first = google_cloud.write_if(path, b"one", 0)
    assert google_cloud.write_if(path, b"two", 0) is None
    assert google_cloud.read(path) == (b"one", first)
    second = google_cloud.write_if(path, b"two", first)
    assert google_cloud.write_if(path, b"three", first) is None
    assert not google_cloud.delete_if(path, first) and google_cloud.read(path) == (b"two", second)
    assert google_cloud.delete_if(path, second) and google_cloud.read(path) == (None, 0)


def test_a_write_whose_answer_was_lost_is_known_by_its_content(emulator, bucket):
    emulator.faults.add(f"write {bucket}/*", "lost_answer")
    generation = google_cloud.write_if(f"{bucket}/lock", b"mine", 0)
    assert generation and google_cloud.read(f"{bucket}/lock") == (b"mine", generation)


def test_of_many_that_write_at_once_one_is_first(bucket):
    won = []

    def contend(number):
        if google_cloud.write_if(f"{bucket}/lock", f"{number}".encode(), 0):
            won.append(number)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and google_cloud.read(f"{bucket}/lock")[0] == f"{won[0]}".encode()


def test_atomic_writers_leave_the_old_object_where_they_fail(emulator, bucket):
    path = f"{bucket}/x"
    storage.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), storage.atomic_writer(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert emulator.get(path) == b"old"
    fault = emulator.faults.make_read_only(bucket)
    with pytest.raises(StorageFailed, match="permission is denied"):
        storage.write_bytes(path, b"new")
    assert emulator.get(path) == b"old" and emulator.faults.hits(fault)


def test_local_copies_are_whole_and_gone_afterwards(bucket):
    for name in ("a", "b"):
        storage.write_bytes(f"{bucket}/f/{name}", name.encode())
    with storage.local_copies([f"{bucket}/f/a", f"{bucket}/f/b"]) as paths:
        assert list(map(storage.read_text, paths)) == ["a", "b"]
        assert len({os.path.dirname(path) for path in paths}) == 1
    assert not any(map(os.path.exists, paths))


def test_the_first_failure_of_several_transfers_is_raised(emulator, bucket, file):
    emulator.faults.add(f"write {bucket}/2", "status", status=403, times=None)
    with pytest.raises(StorageFailed, match=f"{bucket}/2: permission"):
        google_cloud.in_parallel(google_cloud.upload, [(file, f"{bucket}/{number}") for number in range(4)])
