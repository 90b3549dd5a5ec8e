"""The proxy before the service, a process of its own: ends TLS, logs requests and commits faults.

TensorFlow calls Google's real addresses through `https_proxy`; its CONNECT is answered here, with a certificate of a
throw-away authority. The same port takes plain HTTP, for clients that honour STORAGE_EMULATOR_HOST. A process of its own
because TensorFlow holds Python's interpreter lock during some requests (`TFRecordWriter`, checkpoint readers, closing a
file): a server in the same process could not answer them.

    python gcs_proxy.py FOLDER     the key for the control connection comes as a line on standard input, whose end ends it
"""

import contextlib
import http.server
import json
import os
import re
import socket
import ssl
import struct
import sys
import threading
import urllib.parse
from multiprocessing.managers import BaseManager

import trustme
from gcs_faults import Faults, Requests
from gcs_service import Call, Service, error_reply, flipped


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    tunnel_to = None

    def handle(self):
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):  # clients hang up as they like
            super().handle()

    def do_CONNECT(self):
        host = self.path.rpartition(":")[0]
        if not host.endswith(".googleapis.com"):
            self.send_error(403, f"{host} is not Google Cloud Storage")
            return
        self.send_response_only(200, "Connection established")
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.tunnel_to = host
        self.close_connection = False

    def serve(self):
        """Answers one request."""
        call = self._read_call()
        request = self.server.service.request_of(call)
        faults = self.server.faults
        fault = faults.strike(request)
        request.fault = fault and fault.kind
        self.server.requests.begin(request)
        faults.silence()
        if fault is None:
            reply = self.server.service.handle(call)
            self._send(request, reply)
        else:
            self._commit(fault, request, call)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def _read_call(self):
        url = urllib.parse.urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Call(
            method=self.command,
            path=url.path,
            parameters=urllib.parse.parse_qs(url.query, keep_blank_values=True),
            headers=headers,
            body=self._read_body(headers),
            base_url=f"https://{self.tunnel_to}" if self.tunnel_to else f"http://{headers['host']}",
        )

    def _read_body(self, headers):
        # TensorFlow says both; then the Content-Length does not count.
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self._read_whole(int(headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
            chunks.append(self._read_whole(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _read_whole(self, num_bytes):
        content = self.rfile.read(num_bytes) if num_bytes >= 0 else None
        if content is None or len(content) < num_bytes:
            raise ConnectionAbortedError  # the client is gone; half an object is none
        return content

    def _commit(self, fault, request, call):
        """Answers a request with a fault."""
        service, faults = self.server.service, self.server.faults
        kind = fault.kind
        if kind == "reset":
            self._reset()
        if kind in ("status", "expired_token"):
            self._send(request, error_reply(fault.status))
            return
        if kind == "reset_in_body" and call.body:
            service.receive_part(call, fault.position(len(call.body)))
            self._reset()
        call.damaged = kind == "corrupted" and request.operation == "write"
        reply = service.handle(call)
        position = fault.position(len(reply.body))
        if kind == "lost_answer":
            self._reset()
        elif kind == "slow_first_byte":
            faults.silence(fault.seconds)
        elif kind == "corrupted" and not call.damaged:
            reply.body = flipped(reply.body, position)
        elif kind == "short":
            reply.body = reply.body[:position]
            if reply.status == 206:
                first, total = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers["Content-Range"]).groups()
                reply.headers["Content-Range"] = f"bytes {first}-{int(first) + position - 1}/{total}"
        breaks = kind in ("stall", "truncated", "reset_in_body")
        self._send(request, reply, stop_at=position if breaks else None)
        if kind == "stall":
            faults.silence(fault.seconds)
            self.connection.sendall(reply.body[position:])
            request.bytes_down = len(reply.body)
        elif kind == "truncated":
            self.close_connection = True
        elif kind == "reset_in_body":
            self._reset()

    def _send(self, request, reply, stop_at=None):
        request.status = reply.status
        body = memoryview(reply.body)[:stop_at]
        request.bytes_down = len(body)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if body:
            self.connection.sendall(body)

    def _reset(self):
        """Ends the connection, so that the client sees a reset rather than an end, and the handling of the request."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for stream in (self.rfile, self.wfile, self.connection):
            stream.close()
        raise ConnectionAbortedError

    def log_message(self, *args):
        """Keeps quiet: `Requests` is the log."""


class Proxy(http.server.ThreadingHTTPServer):
    """The proxy on a free port of the loopback interface.

    Args:
        ca_path: where to write the certificate of its authority.
    """

    request_queue_size = 256

    def __init__(self, ca_path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.service, self.faults, self.requests = Service(), Faults(), Requests()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(ca_path)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("*.googleapis.com").configure_cert(self.tls)


class Control(BaseManager):
    """The connection through which the test process calls the objects of this one."""


def main():
    """Serves until standard input ends."""
    key = bytes.fromhex(sys.stdin.readline())
    proxy = Proxy(os.path.join(sys.argv[1], "ca.pem"))
    for name in ("service", "faults", "requests"):
        Control.register(name, callable=lambda name=name: getattr(proxy, name))
    control = Control(("127.0.0.1", 0), key).get_server()
    for serve in (proxy.serve_forever, control.serve_forever):
        threading.Thread(target=serve, daemon=True).start()
    print(json.dumps({"proxy": proxy.server_port, "control": control.address[1]}), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
