"""What is checked of Google Cloud Storage before any device is started."""

import http.server
import json
import threading

import pytest

from trainer.errors import InputError, StorageFailed
from trainer.storage.preflight import check_storage, lies_in, machine_zone


def lines_of(reads=(), writes=(), zone=None):
    told = []
    check_storage(list(reads), list(writes), told.append, zone)
    return told


def test_nothing_is_asked_where_everything_is_local(emulator):
    mark = emulator.requests.mark()
    assert lines_of(["/data", "corpus/"], ["/runs"]) == [] and not emulator.requests.since(mark)


def test_buckets_and_what_they_are_used_for_are_told(emulator, bucket):
    other = emulator.bucket(f"{bucket.removeprefix('gs://')}-runs", location="US-CENTRAL1")
    assert lines_of([f"{bucket}/data"], [f"{other}/run"], "us-central1-b") == [
        f"{bucket}: read, location US",
        f"{other}: read and write, location US-CENTRAL1",
    ]
    assert lines_of([], [f"{other}/run"], "europe-west4-a")[1].startswith(f"warning: {other} lies in US-CENTRAL1, this")


@pytest.mark.parametrize(
    ("zone", "location", "inside"),
    [
        ("us-central1-b", "US-CENTRAL1", True),
        ("us-central1-b", "US-CENTRAL2", False),
        ("us-central1-b", "US", True),
        ("europe-west4-a", "EU", True),
        ("europe-west4-a", "US", False),
        ("asia-east1-c", "ASIA", True),
        ("asia-east1-c", "NAM4", True),
    ],
)
def test_zones_lie_in_locations(zone, location, inside):
    assert lies_in(zone, location) == inside


def test_a_bucket_that_is_not_there(emulator):
    with pytest.raises(StorageFailed, match="gcloud storage buckets create gs://not-there-at-all --location=us-east1"):
        lines_of(["gs://not-there-at-all/x"], zone="us-east1-b")
    with pytest.raises(InputError, match="gs://bucket/folder/file"):
        lines_of(["gs://"])


def test_credentials_that_are_refused(emulator, bucket):
    emulator.faults.add("*", "status", status=401, times=None)
    with pytest.raises(StorageFailed, match="gcloud auth application-default login"):
        lines_of([f"{bucket}/x"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type": "external_account"}, "'external_account', which TensorFlow's client"),
        ("no JSON", "no file of credentials"),
    ],
)
def test_credentials_that_tensorflow_does_not_understand(monkeypatch, bucket, tmp_path, content, message):
    path = tmp_path / "key.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.delenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", raising=False)
    with pytest.raises(StorageFailed, match=message):
        lines_of([f"{bucket}/x"])


def test_the_zone_is_asked_of_the_metadata_server(monkeypatch):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            good = self.path == "/computeMetadata/v1/instance/zone" and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if good else 404)
            self.end_headers()
            self.wfile.write(b"projects/1/zones/us-east1-d")

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert machine_zone() is None
    monkeypatch.delenv("NO_GCE_CHECK")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_address[1]}")
        try:
            assert machine_zone() == "us-east1-d"
        finally:
            server.shutdown()
            thread.join()
    assert machine_zone(timeout=0.2) is None
