"""The emulator serves TensorFlow's gs:// client and Google's client, and what both do when the service misbehaves."""

import base64
import concurrent.futures
import hashlib
import os
import socket
import time

import google.auth.credentials
import google_crc32c
import pytest
import requests
import tensorflow as tf
from google.api_core import exceptions
from google.cloud import storage
from google.cloud.storage import retry, transfer_manager
from google.cloud.storage.exceptions import DataCorruption

gfile = tf.io.gfile
PermissionDeniedError = tf.errors.PermissionDeniedError
CONTENT = bytes(range(256)) * 1200
PIECE = 256 << 10  # what the service keeps of a broken upload is a multiple
RECORDS = [b"%03d" % number + bytes(100) for number in range(100)]
RECORD_BYTES = 103 + 16  # a TFRecord has 16 bytes of length and checksums
SOON = retry.DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.02)


# What runs in `impatient_process`, too.


def read(path):
    with gfile.GFile(path, "rb") as file:
        return file.read()


def write(path, content, mode="wb"):
    with gfile.GFile(path, mode) as file:
        file.write(content)


def num_bytes(path):
    return gfile.stat(path).length


def num_records(path):
    return sum(1 for _ in tf.data.TFRecordDataset(path))


def write_records(path):
    with tf.io.TFRecordWriter(path) as writer:
        for record in RECORDS:
            writer.write(record)


def restore(path, shape):
    variable = tf.Variable(tf.zeros(shape))
    tf.train.Checkpoint(variable=variable).restore(path).expect_partial()
    return variable.numpy().tolist()


@pytest.fixture
def run(bucket, impatient_process):
    """Calls a function of this module in `impatient_process`."""
    return lambda function, *arguments: impatient_process.submit(function, *arguments).result(timeout=60)


@pytest.fixture
def google_bucket(bucket):
    """Google's client of the bucket of this test."""
    return storage.Client().bucket(bucket.removeprefix("gs://"))


class TestTensorFlow:
    def test_files_are_written_appended_to_and_read(self, bucket, emulator):
        path = f"{bucket}/folder/file"
        write(path, b"one")
        write(path, b", two", "ab")
        assert read(path) == emulator.get(path) == b"one, two"
        with gfile.GFile(path, "rb") as file:
            file.seek(5)
            assert file.read(2) == b"tw"
        assert num_bytes(path) == 8

    def test_an_empty_file_is_one(self, bucket):
        write(f"{bucket}/empty", b"")
        assert read(f"{bucket}/empty") == b""
        assert num_bytes(f"{bucket}/empty") == 0

    def test_folders_are_listed_searched_and_recognised(self, bucket, emulator):
        for name in ("a/1.txt", "a/2.txt", "a/b/3.txt", "c.txt"):
            emulator.put(f"{bucket}/{name}", b"x")
        gfile.makedirs(f"{bucket}/made")
        assert sorted(gfile.listdir(f"{bucket}/a")) == ["1.txt", "2.txt", "b/"]
        assert gfile.glob(f"{bucket}/a/*.txt") == [f"{bucket}/a/1.txt", f"{bucket}/a/2.txt"]
        assert gfile.isdir(f"{bucket}/a")
        assert gfile.isdir(f"{bucket}/made")
        assert not gfile.isdir(f"{bucket}/c.txt")
        assert gfile.exists(f"{bucket}/a/b/3.txt")
        assert not gfile.exists(f"{bucket}/a/b/4.txt")
        assert emulator.list(bucket, "made") == ["made/"]

    def test_files_and_folders_are_renamed_copied_and_removed(self, bucket, emulator):
        for name in ("a/1", "a/b/2", "c"):
            emulator.put(f"{bucket}/{name}", name.encode())
        gfile.rename(f"{bucket}/a", f"{bucket}/z")
        gfile.copy(f"{bucket}/c", f"{bucket}/d")
        assert emulator.list(bucket) == ["c", "d", "z/1", "z/b/2"]
        assert emulator.get(f"{bucket}/z/b/2") == b"a/b/2"
        gfile.rmtree(f"{bucket}/z")
        gfile.remove(f"{bucket}/c")
        assert emulator.list(bucket) == ["d"]

    def test_records_are_written_and_read(self, bucket):
        path = f"{bucket}/records"
        write_records(path)
        assert list(tf.data.TFRecordDataset(path).as_numpy_iterator()) == RECORDS
        rows = tf.data.FixedLengthRecordDataset(path, RECORD_BYTES, header_bytes=RECORD_BYTES)
        assert [row[12:115] for row in rows.as_numpy_iterator()] == RECORDS[1:]

    def test_large_files_are_read_in_blocks(self, bucket, emulator):
        content = os.urandom(5 << 20)
        emulator.put(f"{bucket}/large", content)
        assert read(f"{bucket}/large") == content
        reads = emulator.requests.since(match="read")
        assert sum(request.bytes_down for request in reads) == len(content)
        assert reads[1].byte_range == "bytes=1048576-2097151"  # GCS_READ_CACHE_BLOCK_SIZE_MB=1

    def test_checkpoints_are_saved_kept_and_restored(self, bucket):
        variable = tf.Variable([1.0, 2.0])
        checkpoint = tf.train.Checkpoint(variable=variable)
        manager = tf.train.CheckpointManager(checkpoint, f"{bucket}/checkpoints", max_to_keep=2)
        for _ in range(3):
            manager.save()
            variable.assign_add([1.0, 1.0])
        assert len(manager.checkpoints) == 2
        assert not gfile.exists(f"{bucket}/checkpoints/ckpt-1.index")
        assert restore(tf.train.latest_checkpoint(f"{bucket}/checkpoints"), [2]) == [3.0, 4.0]

    def test_summaries_are_written(self, bucket):
        with tf.summary.create_file_writer(f"{bucket}/tensorboard").as_default():
            tf.summary.scalar("loss", 0.5, step=7)
        (path,) = gfile.glob(f"{bucket}/tensorboard/*")
        events = [tf.compat.v1.Event.FromString(record) for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]
        assert [(event.step, event.summary.value[0].tag) for event in events if event.summary.value] == [(7, "loss")]


class TestGoogleClient:
    def test_what_one_client_writes_the_other_reads(self, bucket, google_bucket):
        write(f"{bucket}/by/tensorflow", b"one")
        google_bucket.blob("by/google").upload_from_string(b"two")
        assert google_bucket.blob("by/tensorflow").download_as_bytes() == b"one"
        assert read(f"{bucket}/by/google") == b"two"
        assert sorted(gfile.listdir(f"{bucket}/by")) == ["google", "tensorflow"]

    def test_metadata_tells_size_checksums_and_generation(self, bucket, google_bucket):
        write(f"{bucket}/x", CONTENT)
        blob = google_bucket.get_blob("x")
        assert blob.size == len(CONTENT)
        assert blob.crc32c == base64.b64encode(google_crc32c.Checksum(CONTENT).digest()).decode()
        assert blob.md5_hash == base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
        assert blob.metageneration == 1
        first = blob.generation
        write(f"{bucket}/x", CONTENT[1:])
        assert google_bucket.get_blob("x").generation > first
        with pytest.raises(exceptions.NotFound):
            google_bucket.blob("x", generation=first).download_as_bytes()

    def test_only_one_of_many_makes_an_object_that_must_not_exist(self, google_bucket):
        def create(number):
            try:
                google_bucket.blob("lock").upload_from_string(str(number), if_generation_match=0)
                return number
            except exceptions.PreconditionFailed:
                return None

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(create, range(16)) if number is not None]
        assert len(winners) == 1
        assert google_bucket.blob("lock").download_as_bytes() == str(winners[0]).encode()

    @pytest.mark.parametrize("chunk_size", [None, PIECE])
    def test_preconditions_guard_every_way_to_change_an_object(self, google_bucket, chunk_size):
        blob = google_bucket.blob("x", chunk_size=chunk_size)  # a chunk size makes the upload a resumable one
        blob.upload_from_string(CONTENT, if_generation_match=0)
        first = blob.generation
        blob.upload_from_string(CONTENT[1:], if_generation_match=first)
        for change in (
            lambda: google_bucket.blob("x", chunk_size=chunk_size).upload_from_string(b"", if_generation_match=first),
            lambda: google_bucket.blob("x").delete(if_generation_match=first),
            lambda: google_bucket.blob("y").rewrite(blob, if_source_generation_match=first),
            lambda: google_bucket.blob("x").rewrite(blob, if_generation_match=0),
            lambda: google_bucket.blob("x").compose([blob], if_generation_match=0),
            lambda: google_bucket.copy_blob(blob, google_bucket, "x", if_generation_match=0),
        ):
            with pytest.raises(exceptions.PreconditionFailed):
                change()
        google_bucket.blob("x").delete(if_generation_match=blob.generation)
        assert not google_bucket.blob("x").exists()

    def test_objects_are_composed_copied_and_described(self, google_bucket, emulator, bucket):
        parts = [google_bucket.blob(f"part-{number}") for number in range(3)]
        for number, part in enumerate(parts):
            part.upload_from_string(str(number))
        whole = google_bucket.blob("whole")
        whole.compose(parts)
        assert (whole.size, whole.md5_hash, whole.metageneration) == (3, None, 1)
        google_bucket.copy_blob(whole, google_bucket, "copy")
        whole.metadata = {"key": "value"}
        whole.patch()
        assert (whole.metageneration, google_bucket.get_blob("whole").metadata) == (2, {"key": "value"})
        assert emulator.get(f"{bucket}/copy") == b"012"

    def test_parts_of_an_object_are_read(self, google_bucket, emulator, bucket):
        emulator.put(f"{bucket}/x", b"0123456789")
        assert google_bucket.blob("x").download_as_bytes(start=3, end=5) == b"345"
        assert google_bucket.blob("x").download_as_bytes(start=8, end=100) == b"89"
        with pytest.raises(exceptions.RequestRangeNotSatisfiable):
            google_bucket.blob("x").download_as_bytes(start=10)
        url = f"{emulator.environment['STORAGE_EMULATOR_HOST']}/{bucket.removeprefix('gs://')}/x"
        answer = requests.get(url, headers={"Range": "bytes=-4"}, timeout=10)
        assert (answer.status_code, answer.content) == (206, b"6789")
        assert answer.headers["Content-Range"] == "bytes 6-9/10"
        assert answer.headers["X-Goog-Hash"].startswith("crc32c=")

    def test_listings_come_in_pages(self, google_bucket, emulator, bucket):
        names = [f"a/{number:02}" for number in range(5)] + ["b/x", "b/y", "c"]
        for name in names:
            emulator.put(f"{bucket}/{name}", b"")
        assert [blob.name for blob in google_bucket.list_blobs(page_size=2)] == names
        top = google_bucket.list_blobs(delimiter="/", page_size=2)
        assert ([blob.name for blob in top], top.prefixes) == (["c"], {"a/", "b/"})
        assert len(emulator.requests.since(match="list")) == 4 + 2
        assert [blob.name for blob in google_bucket.list_blobs(prefix="a/", start_offset="a/03")] == names[3:5]

    def test_names_that_a_file_system_would_mix_up_are_kept_apart(self, google_bucket):
        for name in ("a", "a/", "a//", "a/./b", "a/b", "ü ?#&+%2F"):
            google_bucket.blob(name).upload_from_string(name)
        assert {blob.name: blob.download_as_text() for blob in google_bucket.list_blobs()} == {
            name: name for name in ("a", "a/", "a//", "a/./b", "a/b", "ü ?#&+%2F")
        }

    def test_an_upload_whose_client_dies_leaves_nothing(self, emulator, bucket):
        address = emulator.environment["STORAGE_EMULATOR_HOST"].removeprefix("http://").split(":")
        url = f"/upload/storage/v1/b/{bucket.removeprefix('gs://')}/o?uploadType=media&name=x"
        for length in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
            with socket.create_connection(address) as connection:
                connection.sendall(f"POST {url} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n10\r\n".encode())
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
        assert emulator.list(bucket) == []

    def test_buckets_tell_their_location(self, emulator, bucket):
        name = emulator.bucket(f"{bucket}-elsewhere", "europe-west4").removeprefix("gs://")
        client = storage.Client()
        found = client.get_bucket(name)
        assert (found.location, found.location_type) == ("EUROPE-WEST4", "region")
        with pytest.raises(exceptions.NotFound):
            client.get_bucket("no-such-bucket")
        with pytest.raises(exceptions.NotFound):
            client.bucket("no-such-bucket").blob("x").upload_from_string("x")

    def test_many_files_are_transferred_at_the_same_time(self, google_bucket, tmp_path):
        names = [f"file-{number}" for number in range(12)]
        for number, name in enumerate(names):
            (tmp_path / name).write_bytes(CONTENT[number:])
        pairs = [(str(tmp_path / name), google_bucket.blob(name)) for name in names]
        threads = {"worker_type": transfer_manager.THREAD, "raise_exception": True}
        transfer_manager.upload_many(pairs, **threads, skip_if_exists=True)
        pairs = [(google_bucket.blob(name), str(tmp_path / f"{name}.copy")) for name in names]
        transfer_manager.download_many(pairs, **threads)
        assert [(tmp_path / f"{name}.copy").read_bytes() for name in names] == [CONTENT[n:] for n in range(len(names))]


class TestTensorFlowUnderFaults:
    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_passing_errors_are_tried_again(self, run, bucket, emulator, status):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.add("read", "status", status=status, times=2)
        emulator.faults.add("PUT", "status", status=status, times=2)
        assert run(read, f"{bucket}/x") == CONTENT
        run(write, f"{bucket}/y", CONTENT)
        assert emulator.get(f"{bucket}/y") == CONTENT
        assert emulator.requests.counts()["read"].requests == 3

    def test_lasting_errors_end_as_aborted(self, run, bucket, emulator):
        emulator.put(f"{bucket}/x", CONTENT)
        fault = emulator.faults.add("*", "status", times=None)
        for function, argument in ((read, "x"), (num_bytes, "x"), (write_records, "y")):
            with pytest.raises(tf.errors.AbortedError, match="All 3 retry attempts failed"):
                run(function, f"{bucket}/{argument}")
        assert emulator.faults.hits(fault) > 12

    @pytest.mark.parametrize(
        "status, error",
        [(401, PermissionDeniedError), (403, PermissionDeniedError), (404, tf.errors.NotFoundError)],
    )
    def test_refusals_are_not_tried_again(self, run, bucket, emulator, status, error):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.add("read", "status", status=status)
        with pytest.raises(error):
            run(read, f"{bucket}/x")
        assert emulator.requests.counts()["read"].requests == 1

    def test_a_write_that_failed_may_happen_all_the_same(self, run, bucket, emulator):
        emulator.faults.add("PUT", "status", status=403)
        with pytest.raises(PermissionDeniedError):
            run(write, f"{bucket}/x", CONTENT)
        assert emulator.get(f"{bucket}/x") == CONTENT  # uploaded again by the destructor of the file

    @pytest.mark.parametrize("kind", ["reset", "reset_in_body", "truncated", "lost_answer"])
    def test_lost_connections_are_tried_again(self, run, bucket, emulator, kind):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.add("read", kind)
        emulator.faults.add("metadata */x", kind)
        emulator.faults.add("PUT", kind)
        emulator.faults.add("delete", kind)
        assert run(num_bytes, f"{bucket}/x") == len(CONTENT)
        assert run(read, f"{bucket}/x") == CONTENT
        run(write, f"{bucket}/y", CONTENT)
        assert emulator.get(f"{bucket}/y") == CONTENT
        run(gfile.remove, f"{bucket}/x")
        assert emulator.list(bucket) == ["y"]

    def test_an_upload_goes_on_where_it_broke(self, run, bucket, emulator):
        emulator.faults.add("PUT", "reset_in_body", at=PIECE + 1000)
        run(write, f"{bucket}/x", CONTENT)
        assert emulator.get(f"{bucket}/x") == CONTENT
        puts = emulator.requests.since(match="PUT")
        assert [(put.status, put.bytes_up) for put in puts] == [
            (None, len(CONTENT)),
            (308, 0),
            (200, len(CONTENT) - PIECE),
        ]

    @pytest.mark.parametrize("kind", ["stall", "slow_first_byte"])
    def test_silence_is_given_up_and_tried_again(self, run, bucket, emulator, kind):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.add("read", kind, seconds=60)
        assert run(read, f"{bucket}/x") == CONTENT
        assert emulator.requests.counts()["read"].requests == 2

    def test_a_short_answer_passes_for_the_end_of_the_file(self, run, bucket, emulator):
        run(write_records, f"{bucket}/records")
        emulator.faults.add("read", "short", at=40 * RECORD_BYTES, times=2)
        assert run(num_records, f"{bucket}/records") == 40
        assert len(run(read, f"{bucket}/records")) == 40 * RECORD_BYTES

    def test_wrong_bytes_are_noticed_only_where_a_format_has_checksums(self, run, bucket, emulator):
        run(write_records, f"{bucket}/records")
        emulator.put(f"{bucket}/x", CONTENT)
        path = tf.train.Checkpoint(variable=tf.Variable(tf.ones([1000]))).write(f"{bucket}/checkpoint")
        emulator.faults.add("read */checkpoint.data*", "corrupted", times=None)
        emulator.faults.add("read", "corrupted", times=2, at=150)
        wrong = run(read, f"{bucket}/x")
        assert [place for place in range(len(CONTENT)) if wrong[place] != CONTENT[place]] == [150]
        with pytest.raises(tf.errors.DataLossError):
            run(num_records, f"{bucket}/records")
        with pytest.raises(tf.errors.OpError, match="Checksum does not match"):
            run(restore, path, [1000])

    def test_bytes_that_went_wrong_on_the_way_up_are_stored(self, run, bucket, emulator):
        emulator.faults.add("PUT", "corrupted")
        run(write, f"{bucket}/x", CONTENT)
        assert len(emulator.get(f"{bucket}/x")) == len(CONTENT)
        assert emulator.get(f"{bucket}/x") != CONTENT

    def test_an_expired_token_is_not_renewed(self, run, bucket, emulator):
        emulator.put(f"{bucket}/x", CONTENT)
        fault = emulator.faults.add("*", "expired_token")
        for _ in range(2):
            with pytest.raises(PermissionDeniedError, match="401"):
                run(num_bytes, f"{bucket}/x")
        assert emulator.faults.hits(fault) == 2

    def test_a_bucket_becomes_read_only(self, run, bucket, emulator):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.make_read_only(bucket)
        assert run(read, f"{bucket}/x") == CONTENT
        for function, arguments in (
            (write, ["y", b""]),
            (gfile.remove, ["x"]),
            (gfile.makedirs, ["folder"]),
            (gfile.rename, ["x", f"{bucket}/z"]),
        ):
            with pytest.raises(PermissionDeniedError):
                run(function, f"{bucket}/{arguments[0]}", *arguments[1:])
        assert emulator.list(bucket) == ["x"]


class TestGoogleClientUnderFaults:
    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_passing_errors_are_tried_again(self, google_bucket, emulator, status):
        for operation in ("read", "write", "metadata"):
            emulator.faults.add(operation, "status", status=status, times=2)
        google_bucket.blob("x").upload_from_string(CONTENT, if_generation_match=0, retry=SOON)
        assert google_bucket.get_blob("x", retry=SOON).download_as_bytes(retry=SOON) == CONTENT
        assert [count.requests for count in emulator.requests.counts().values()] == [3, 3, 3]

    def test_lasting_errors_end_at_the_deadline(self, google_bucket, emulator):
        emulator.faults.add("*", "status", times=None)
        with pytest.raises(exceptions.RetryError):
            google_bucket.blob("x").reload(retry=SOON.with_timeout(0.1))

    @pytest.mark.parametrize("status, error", [(403, exceptions.Forbidden), (404, exceptions.NotFound)])
    def test_refusals_are_not_tried_again(self, google_bucket, emulator, status, error):
        fault = emulator.faults.add("*", "status", status=status)
        with pytest.raises(error):
            google_bucket.blob("x").upload_from_string(CONTENT)
        assert emulator.faults.hits(fault) == len(emulator.requests.since()) == 1

    @pytest.mark.parametrize("kind", ["reset", "reset_in_body", "truncated"])
    def test_lost_connections_are_tried_again(self, google_bucket, emulator, bucket, kind):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.add("read", kind)
        assert google_bucket.blob("x").download_as_bytes(retry=SOON) == CONTENT
        assert len(emulator.requests.since(match="read")) == 2

    @pytest.mark.parametrize("kind", ["stall", "slow_first_byte"])
    def test_silence_is_given_up_and_tried_again(self, google_bucket, emulator, bucket, kind):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.add("read", kind)
        assert google_bucket.blob("x").download_as_bytes(retry=SOON, timeout=0.5) == CONTENT

    def test_a_lost_answer_looks_like_somebody_elses_object(self, google_bucket, emulator, bucket):
        emulator.faults.add("write", "lost_answer")
        with pytest.raises(exceptions.PreconditionFailed):
            google_bucket.blob("x").upload_from_string(b"mine", if_generation_match=0, retry=SOON)
        assert emulator.get(f"{bucket}/x") == b"mine"

    def test_an_upload_goes_on_where_it_broke(self, google_bucket, emulator, bucket):
        content = CONTENT * 4
        emulator.faults.add("PUT", "lost_answer", after=1)
        blob = google_bucket.blob("x", chunk_size=PIECE)
        blob.upload_from_string(content, retry=SOON, if_generation_match=0)
        assert emulator.get(f"{bucket}/x") == content

    def test_wrong_bytes_are_noticed_but_not_in_parts_of_an_object(self, google_bucket, emulator, bucket):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.add("read", "corrupted", times=2)
        with pytest.raises(DataCorruption):
            google_bucket.blob("x").download_as_bytes()
        part = google_bucket.blob("x").download_as_bytes(start=0, end=999)
        assert len(part) == 1000
        assert part != CONTENT[:1000]

    def test_bytes_that_went_wrong_on_the_way_up_are_refused(self, google_bucket, emulator, bucket):
        emulator.faults.add("write", "corrupted")
        with pytest.raises(exceptions.BadRequest, match="CRC32C"):
            google_bucket.blob("x").upload_from_string(CONTENT, checksum="crc32c")
        assert emulator.list(bucket) == []

    def test_an_expired_token_is_renewed(self, bucket, emulator):
        class Credentials(google.auth.credentials.Credentials):
            def __init__(self):
                super().__init__()
                self.token = "the first"

            def refresh(self, request):
                self.token = "another"

        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.add("*", "expired_token")
        client = storage.Client(project="a-project", credentials=Credentials())
        assert client.bucket(bucket.removeprefix("gs://")).get_blob("x").size == len(CONTENT)
        assert [(request.token, request.status) for request in emulator.requests.since()] == [
            ("Bearer the first", 401),
            ("Bearer another", 200),
        ]

    def test_a_bucket_becomes_read_only(self, google_bucket, emulator, bucket):
        emulator.put(f"{bucket}/x", CONTENT)
        emulator.faults.make_read_only(bucket)
        assert google_bucket.blob("x").download_as_bytes() == CONTENT
        for change in (
            lambda: google_bucket.blob("y").upload_from_string(b""),
            lambda: google_bucket.blob("x").delete(),
        ):
            with pytest.raises(exceptions.Forbidden):
                change()


class TestMeasurements:
    def test_requests_are_counted_by_operation_object_and_client(self, bucket, emulator, google_bucket):
        write(f"{bucket}/a", CONTENT)
        mark = emulator.requests.mark()
        google_bucket.blob("a").download_as_bytes()
        by_client = emulator.requests.counts(by="client")
        assert by_client["tensorflow"][:2] == (2, len(CONTENT))
        assert by_client["python"] == (1, 0, len(CONTENT))
        assert emulator.requests.counts(by="object", mark=mark) == {"a": (1, 0, len(CONTENT))}
        assert emulator.requests.counts(match="read gs://another/*") == {}

    def test_faults_strike_what_they_match(self, bucket, emulator, google_bucket):
        for name in ("a.json", "b.json", "c.txt"):
            emulator.put(f"{bucket}/{name}", b"x")
        emulator.faults.add(f"read|metadata {bucket}/*.json", "status", status=404, after=1, times=1)
        found = [google_bucket.blob(name).exists() for name in ("c.txt", "a.json", "b.json", "b.json")]
        assert found == [True, True, False, True]

    def test_latency_is_added_to_every_request(self, bucket, emulator):
        emulator.put(f"{bucket}/a", b"x")
        emulator.latency = 0.1
        start = time.monotonic()
        read(f"{bucket}/a")
        assert time.monotonic() - start >= 0.1 * len(emulator.requests.since())

    def test_a_test_waits_for_a_request(self, bucket, emulator, google_bucket):
        emulator.faults.add("read", "slow_first_byte", seconds=60)
        emulator.put(f"{bucket}/a", b"x")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(google_bucket.blob("a").download_as_bytes)
            assert emulator.requests.wait_for("read */a")[0].status is None
            assert not reading.done()
            emulator.faults.clear()
            assert reading.result(timeout=30) == b"x"
