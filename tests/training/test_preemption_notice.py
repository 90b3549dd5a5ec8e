"""Notices of preemption and maintenance, from a metadata server on loopback."""

import contextlib
import http.server
import threading
import time

import pytest

from trainer.training.interruption import Interruption
from trainer.training.preemption_notice import preemption_watchers


@contextlib.contextmanager
def metadata_server(answers):
    """Serves `{name: text}` as a machine's metadata; yields its address. A name that is missing is not found."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/")
            known = self.headers.get("Metadata-Flavor") == "Google" and name in answers
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(answers.get(name, "").encode())

        def log_message(self, *args):
            """Keeps quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("preempted", "event", "expected"),
    [
        ("FALSE", "NONE", None),
        ("TRUE", "NONE", "this machine is being preempted"),
        ("FALSE", "MIGRATE_ON_HOST_MAINTENANCE", None),
        ("FALSE", "TERMINATE_ON_HOST_MAINTENANCE", "maintenance (TERMINATE_ON_HOST_MAINTENANCE)"),
    ],
)
def test_notices(preempted, event, expected):
    with metadata_server({"preempted": preempted, "maintenance-event": event}) as address:
        (watcher,) = preemption_watchers({"GCE_METADATA_HOST": address})
        assert watcher() is None if expected is None else expected in watcher()


def test_run_is_asked_to_stop_when_the_notice_comes():
    answers, lines = {"preempted": "FALSE", "maintenance-event": "NONE"}, []
    with metadata_server(answers) as address:
        watchers = preemption_watchers({"GCE_METADATA_HOST": address})
        with Interruption(watchers=watchers, poll_seconds=0.02, report=lines.append) as interruption:
            time.sleep(0.1)
            assert not interruption.requested
            answers["preempted"] = "TRUE"
            assert interruption.wait(30)
        assert interruption.reason == "this machine is being preempted"


def test_server_that_does_not_answer_is_told_once_and_does_not_stop_the_run():
    lines = []
    with metadata_server({}) as address:
        watchers = preemption_watchers({"GCE_METADATA_HOST": address})
        with Interruption(watchers=watchers, poll_seconds=0.02, report=lines.append) as interruption:
            time.sleep(0.3)
            assert not interruption.requested
    assert len(lines) == 1 and "metadata_server cannot tell" in lines[0]


def test_nobody_is_asked_elsewhere(tmp_path):
    product = tmp_path / "product_name"
    assert preemption_watchers({}, str(product)) == []
    product.write_text("Standard PC\n")
    assert preemption_watchers({}, str(product)) == []
    product.write_text("Google Compute Engine\n")
    assert len(preemption_watchers({}, str(product))) == 1
    assert preemption_watchers({"NO_GCE_CHECK": "true"}, str(product)) == []
