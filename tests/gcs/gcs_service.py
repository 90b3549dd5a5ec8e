"""The service: `gcp-storage-emulator` keeps the objects and answers; here is what it lacks or does otherwise than GCS.

Its handlers are called directly, under one lock, so that a precondition and the change it guards are one. It has no
preconditions, no pages of a listing, no 416; it cannot store an empty body (TensorFlow's folder markers), takes a
resumable upload's session for one that holds a byte before anything came, copies a whole object for every range that is
read, gives `a` and `a/` one content, ignores a new bucket's location and answers errors without a body.
"""

import base64
import dataclasses
import functools
import json
import re
import threading
import traceback
import urllib.parse
import uuid

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import Storage
from gcs_faults import Request

_REASONS = {
    400: ("invalid", "Bad request"),
    401: ("authError", "Invalid Credentials"),
    403: ("forbidden", "Permission denied on the resource, or it does not exist"),
    404: ("notFound", "No such object"),
    409: ("conflict", "Conflict"),
    412: ("conditionNotMet", "At least one of the pre-conditions you specified did not hold."),
    416: ("requestedRangeNotSatisfiable", "The requested range cannot be satisfied."),
    429: ("rateLimitExceeded", "The object exceeded the rate limit for object mutation operations"),
    500: ("backendError", "Backend Error"),
    501: ("notImplemented", "Not implemented by the emulator"),
    503: ("backendError", "Backend Error"),
}
_NO_BUCKET = "The specified bucket does not exist."
_UPLOAD_STEP = 256 << 10  # GCS keeps a multiple of this of an upload that was cut off
_HASHES = {"crc32c": "crc32c", "md5": "md5Hash"}  # of the header X-Goog-Hash: the fields of the metadata


@dataclasses.dataclass
class Call:
    """A request as it came.

    Attributes:
        method: of HTTP.
        path: of the URL, quoted.
        parameters: of the URL, a dict of lists.
        headers: dict with names in small letters.
        body: bytes.
        base_url: what the client takes this service for.
        damaged: whether the content of the object arrives with another byte.
    """

    method: str
    path: str
    parameters: dict
    headers: dict
    body: bytes = b""
    base_url: str = ""
    damaged: bool = False

    @functools.cached_property
    def query(self):
        """The parameters as a dict of texts."""
        return {name: values[-1] for name, values in self.parameters.items()}


@dataclasses.dataclass
class Reply:
    """An answer; `body` may be a memoryview of an object."""

    status: int
    body: bytes | memoryview = b""
    headers: dict = dataclasses.field(default_factory=dict)


class _Error(Exception):
    """Ends the handling of a request with an error for the client."""

    def __init__(self, status, message=None):
        super().__init__(status, message)
        self.status = status
        self.message = message


def error_reply(status, message=None):
    """Returns an error with the body that GCS gives it."""
    reason, text = _REASONS.get(status, ("unknown", "Error"))
    error = {"domain": "global", "reason": reason, "message": message or text}
    body = json.dumps({"error": {"code": status, "message": message or text, "errors": [error]}}).encode()
    return Reply(status, body, {"Content-Type": "application/json; charset=UTF-8"})


def flipped(content, position):
    """Returns the bytes with another one at a position."""
    content = bytearray(content)
    if content:
        content[min(position, len(content) - 1)] ^= 0xFF
    return bytes(content)


def _json_reply(value, headers=None):
    body = json.dumps(value).encode()
    return Reply(200, body, {"Content-Type": "application/json; charset=UTF-8"} | (headers or {}))


class _Store(Storage):
    """The emulator's objects in memory, each under a name of its own, without a file that lists them all."""

    def __init__(self):
        super().__init__(use_memory_fs=True)

    def _object_path(self, bucket_name, file_name):
        return f"{bucket_name}/{file_name.encode().hex()}"  # its own paths take `a/` and `a` for the same

    def _write_config_to_file(self):
        pass


class _EmulatorRequest:
    """What the emulator's handlers ask a request for."""

    def __init__(self, call, params, data):
        self.method = call.method
        self.path = call.path
        self.base_url = call.base_url
        self.full_url = call.base_url + call.path
        self.query = call.parameters
        self.params = params
        self.data = data
        self._headers = call.headers

    def get_header(self, key, default=None):
        return self._headers.get(key.lower(), default)


class _EmulatorResponse(dict):
    """What the emulator's handlers tell a response; the dict is the headers, `content` what they give for JSON."""

    status = 200
    content = None

    def json(self, value):
        self.content = value


@dataclasses.dataclass
class _Upload:
    """A resumable upload: what it will be, what has come, and the object once it is complete."""

    bucket: str
    name: str
    query: dict
    metadata: dict
    content_type: str
    received: bytearray = dataclasses.field(default_factory=bytearray)
    resource: dict | None = None


_ROUTES = [
    ("upload", r"/upload/storage/v1/b/(?P<bucket>[^/]+)/o"),
    ("copy", r"/storage/v1/b/[^/]+/o/[^/]+/(?:copyTo|rewriteTo)/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)"),
    ("compose", r"/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)/compose"),
    ("download", r"/download/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)"),
    ("object", r"/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)"),
    ("list", r"/storage/v1/b/(?P<bucket>[^/]+)/o"),
    ("layout", r"/storage/v1/b/(?P<bucket>[^/]+)/storageLayout"),
    ("buckets", r"/storage/v1/b"),
    ("other", r"/storage/v1/b/(?P<bucket>[^/]+)(?:/.*)?"),
    ("other", r"/(?:storage|batch)/.*"),
    ("download", r"/(?P<bucket>[^/]+)/(?P<name>.+)"),  # the XML interface, from which TensorFlow reads
]


def _route(call):
    """Returns (route, bucket, name of the object) of a request."""
    for route, pattern in _ROUTES:
        found = re.fullmatch(pattern, call.path)
        if found:
            parts = {key: urllib.parse.unquote(value) for key, value in found.groupdict().items()}
            if route == "object" and call.method == "GET" and call.query.get("alt") == "media":
                route = "download"
            return route, parts.get("bucket", ""), parts.get("name", "")
    return "other", "", ""


def _multipart(call):
    """Returns (metadata, content, content type) of the body of a multipart upload."""
    boundary = re.search(r'boundary="?([^";]+)', call.headers["content-type"])[1].encode()
    _, metadata, content = call.body.split(b"--" + boundary, 2)
    content = content[: content.rindex(b"--" + boundary + b"--")]
    metadata = metadata.partition(b"\r\n\r\n")[2]
    head, _, content = content.partition(b"\r\n\r\n")
    content_type = re.search(rb"(?i)content-type: *([^\r]+)", head)
    return json.loads(metadata), content.removesuffix(b"\r\n"), content_type[1].decode() if content_type else None


def _byte_range(header, size):
    """Returns (start, end) of a Range header for an object of `size` bytes."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not found or found[1] == found[2] == "":
        return 0, size
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
    if start >= end:
        raise _Error(416)
    return start, end


class Service:
    """Google Cloud Storage's JSON interface and the reads of its XML interface, on objects in memory."""

    def __init__(self):
        self._store = _Store()
        self._lock = threading.RLock()
        self._uploads = {}

    # For tests: past the network, not logged.

    def create_bucket(self, name, location="US"):
        """Creates a bucket."""
        body = json.dumps({"name": name, "location": location}).encode()
        reply = self.handle(Call("POST", "/storage/v1/b", {}, {}, body))
        if reply.status != 200:
            raise ValueError(f"no bucket {name}: {bytes(reply.body).decode()}")

    def put(self, bucket, name, content):
        """Stores an object; returns its metadata."""
        with self._lock:
            return self._insert(bucket, name, {}, bytes(content), "application/octet-stream")

    def get(self, bucket, name):
        """Returns the content of an object, None if there is none."""
        with self._lock:
            return self._content(bucket, name) if self._find(bucket, name) else None

    def describe(self, bucket, name):
        """Returns the metadata of an object, None if there is none."""
        with self._lock:
            return self._find(bucket, name)

    def names(self, bucket, prefix=""):
        """Returns the sorted names of the objects in a bucket that begin with `prefix`."""
        with self._lock:
            return [item["name"] for item in self._store.get_file_list(bucket, prefix)[0]]

    def delete(self, bucket, name):
        """Removes an object; returns whether there was one."""
        with self._lock:
            found = self._find(bucket, name) is not None
            if found:
                self._store.delete_file(bucket, name)
            return found

    # For the proxy.

    def request_of(self, call):
        """Returns the `Request` of a call: which operation on which object it is."""
        route, bucket, name = _route(call)
        if route == "upload":
            upload = self._uploads.get(call.query.get("upload_id"))
            name = upload.name if upload else self._upload_name(call)
        if route in ("upload", "copy", "compose", "buckets") or call.method in ("PATCH", "PUT"):
            operation = "list" if call.method == "GET" else "write"  # of the buckets, if that
        elif call.method == "DELETE":
            operation = "delete"
        else:
            operation = {"download": "read", "list": "list"}.get(route, "metadata")
        agent = call.headers.get("user-agent", "").lower()
        return Request(
            method=call.method,
            operation=operation,
            bucket=bucket,
            object=name,
            byte_range=call.headers.get("range"),
            client="python" if "python" in agent else "tensorflow",
            token=call.headers.get("authorization"),
            bytes_up=len(call.body),
        )

    def handle(self, call):
        """Does what a call asks for; returns the `Reply`."""
        route, bucket, name = _route(call)
        try:
            with self._lock:
                return getattr(self, f"_handle_{route}")(call, bucket, name)
        except _Error as error:
            return error_reply(error.status, error.message)
        except NotFound:
            missing = self._store.get_bucket(bucket) is None
            return error_reply(404, _NO_BUCKET if missing else f"No such object: {bucket}/{name}")
        except Exception as error:  # a mistake here or in the emulator: no client tries again after 400
            traceback.print_exc()
            return error_reply(400, f"the emulator failed: {error!r}")

    def receive_part(self, call, num_bytes):
        """Keeps the beginning of the body of a resumable upload, as GCS does when the connection is lost."""
        upload = self._uploads.get(call.query.get("upload_id"))
        if upload is not None and call.method == "PUT":
            with self._lock:
                self._receive(upload, call, call.body[: num_bytes // _UPLOAD_STEP * _UPLOAD_STEP])

    # Routes.

    def _handle_upload(self, call, bucket, name):
        if self._store.get_bucket(bucket) is None:
            raise NotFound
        kind = call.query.get("uploadType")
        if "upload_id" in call.query:
            return self._continue_upload(call)
        name = self._upload_name(call)
        self._check(call.query, self._find(bucket, name))
        if kind == "resumable":
            metadata = json.loads(call.body or b"{}")
            content_type = call.headers.get("x-upload-content-type", "application/octet-stream")
            number = uuid.uuid4().hex
            self._uploads[number] = _Upload(bucket, name, call.query, metadata, content_type)
            query = urllib.parse.urlencode(call.query | {"upload_id": number})
            return Reply(200, headers={"Location": f"{call.base_url}{call.path}?{query}"})
        if kind == "multipart":
            metadata, content, content_type = _multipart(call)
        else:
            metadata, content, content_type = {}, call.body, call.headers.get("content-type")
        content = flipped(content, len(content) // 2) if call.damaged else content
        return self._resource_reply(call, self._insert(bucket, name, metadata, content, content_type))

    def _continue_upload(self, call):
        upload = self._uploads.get(call.query["upload_id"])
        if upload is None:
            raise _Error(404, "No such upload")
        if upload.resource is None:
            complete = self._receive(upload, call, call.body)
            if not complete:
                received = {"Range": f"bytes=0-{len(upload.received) - 1}"} if upload.received else {}
                return Reply(308, headers=received)
            self._check(upload.query, self._find(upload.bucket, upload.name))
            content = bytes(upload.received)
            content = flipped(content, len(content) // 2) if call.damaged else content
            upload.resource = self._insert(upload.bucket, upload.name, upload.metadata, content, upload.content_type)
            upload.received.clear()
        return self._resource_reply(call, upload.resource)

    def _receive(self, upload, call, body):
        """Appends to an upload; returns whether it is complete."""
        header = call.headers.get("content-range")
        if header is None:
            upload.received[:] = body
            return len(body) == len(call.body)
        start, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", header).groups()
        if start is not None:
            if int(start) > len(upload.received):
                raise _Error(400, f"Invalid Content-Range {header}: {len(upload.received)} bytes have come")
            upload.received[int(start) :] = body
        return total != "*" and len(upload.received) == int(total)

    def _handle_download(self, call, bucket, name):
        resource = self._existing(call, bucket, name)
        content = memoryview(self._content(bucket, name))
        headers = {
            "Content-Type": resource.get("contentType") or "application/octet-stream",
            "ETag": resource["etag"],
            "X-Goog-Generation": resource["generation"],
            "X-Goog-Metageneration": resource["metageneration"],
            "X-Goog-Stored-Content-Encoding": "identity",
            "X-Goog-Stored-Content-Length": str(len(content)),
            "X-Goog-Hash": ",".join(f"{key}={resource[field]}" for key, field in _HASHES.items() if field in resource),
        }
        if "range" not in call.headers:
            return Reply(200, content, headers)
        start, end = _byte_range(call.headers["range"], len(content))
        return Reply(206, content[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    def _handle_object(self, call, bucket, name):
        resource = self._existing(call, bucket, name)
        if call.method == "GET":
            return self._resource_reply(call, resource)
        if call.method == "DELETE":
            self._store.delete_file(bucket, name)
            return Reply(204)
        return self._resource_reply(call, self._emulate(call))  # PATCH

    def _handle_copy(self, call, bucket, name):
        found = re.search(r"/b/([^/]+)/o/([^/]+)/(?:copyTo|rewriteTo)/", call.path)
        source = self._find(*map(urllib.parse.unquote, found.groups()))
        if source is None:
            raise NotFound
        source_conditions = {key.replace("Source", ""): value for key, value in call.query.items() if "Source" in key}
        self._check(source_conditions, source)
        self._check(call.query, self._find(bucket, name))
        answer = self._emulate(call)
        resource = self._fresh(self._find(bucket, name))
        if "rewriteTo" in call.path:
            return _json_reply(answer | {"resource": self._shown(call, resource)})
        return self._resource_reply(call, resource)

    def _handle_compose(self, call, bucket, name):
        self._check(call.query, self._find(bucket, name))
        for source in json.loads(call.body)["sourceObjects"]:
            resource = self._find(bucket, source["name"])
            if resource is None:
                raise NotFound
            self._check(source.get("objectPreconditions", {}), resource)
            self._check({"generation": source["generation"]} if "generation" in source else {}, resource)
        self._emulate(call)
        resource = self._fresh(self._find(bucket, name))
        resource["size"] = str(resource["size"])
        del resource["md5Hash"]  # GCS knows none of a composite object
        return self._resource_reply(call, resource)

    def _handle_list(self, call, bucket, name):
        listing = self._emulate(call)
        entries = [(item["name"], item) for item in listing["items"]] + [(name, None) for name in listing["prefixes"]]
        entries.sort(key=lambda entry: entry[0])
        first, last = call.query.get("startOffset", ""), call.query.get("endOffset") or None
        entries = [entry for entry in entries if entry[0] >= first and (last is None or entry[0] < last)]
        if "pageToken" in call.query:
            after = base64.urlsafe_b64decode(call.query["pageToken"]).decode()
            entries = [entry for entry in entries if entry[0] > after]
        page = entries[: int(call.query.get("maxResults") or 1000)]
        answer = {"kind": "storage#objects"}
        if items := [self._shown(call, item) for _, item in page if item is not None]:
            answer["items"] = items
        if prefixes := [name for name, item in page if item is None]:
            answer["prefixes"] = prefixes
        if len(page) < len(entries):
            answer["nextPageToken"] = base64.urlsafe_b64encode(page[-1][0].encode()).decode()
        return _json_reply(answer)

    def _handle_layout(self, call, bucket, name):
        found = self._store.get_bucket(bucket)
        if found is None:
            raise NotFound
        layout = {"kind": "storage#storageLayout", "bucket": bucket, "hierarchicalNamespace": {"enabled": False}}
        return _json_reply(layout | {key: found[key] for key in ("location", "locationType")})

    def _handle_buckets(self, call, bucket, name):
        answer = self._emulate(call)
        if call.method == "POST":
            asked = json.loads(call.body)
            answer["location"] = asked.get("location", "US").upper()
            answer["locationType"] = "region" if "-" in answer["location"] else "multi-region"
            answer["softDeletePolicy"]["retentionDurationSeconds"] = "0"  # of no use here: what is deleted takes memory
        return _json_reply(answer)

    def _handle_other(self, call, bucket, name):
        return _json_reply(self._emulate(call) or {})

    # The emulator and its objects.

    def _emulate(self, call):
        """Has the emulator do it; returns what it answers."""
        for pattern, handlers in server.HANDLERS:
            found = re.fullmatch(pattern, call.path)
            if found and call.method in handlers:
                params = {key: urllib.parse.unquote(value) for key, value in found.groupdict().items()}
                data = json.loads(call.body) if call.body else {}
                return self._answer(handlers[call.method], call, params, data)
        raise _Error(501, f"{call.method} {call.path}")

    def _insert(self, bucket, name, metadata, content, content_type):
        """Stores an object through the emulator, which compares the checksums in `metadata`; returns its metadata."""
        call = Call("POST", "", {"uploadType": ["multipart"], "name": [name]}, {})
        data = {"meta": metadata, "content": content, "content-type": content_type}
        return self._fresh(self._answer(objects.insert, call, {"bucket_name": bucket}, data))

    def _answer(self, handler, call, params, data):
        response = _EmulatorResponse()
        handler(_EmulatorRequest(call, params, data), response, self._store)
        if response.status == 404:
            raise NotFound
        if response.status >= 400:
            raise _Error(int(response.status), response.content and response.content["error"]["message"])
        return response.content

    def _fresh(self, resource):
        resource["metageneration"] = "1"  # the emulator counts the metadata given with an object as a change of it
        return resource

    def _find(self, bucket, name):
        try:
            return self._store.get_file_obj(bucket, name)
        except NotFound:
            return None

    def _content(self, bucket, name):
        return self._store.get_file(bucket, name)

    def _existing(self, call, bucket, name):
        resource = self._find(bucket, name)
        if resource is None:
            raise NotFound
        self._check(call.query, resource)
        return resource

    def _check(self, query, resource):
        """Raises 412 if a precondition does not hold, 404 if the generation asked for is not the present one."""
        generation, metageneration = (int(resource[key]) if resource else 0 for key in ("generation", "metageneration"))
        for name, actual in (("Generation", generation), ("Metageneration", metageneration)):
            if int(query.get(f"if{name}Match", actual)) != actual:
                raise _Error(412)
            if f"if{name}NotMatch" in query and int(query[f"if{name}NotMatch"]) == actual:
                raise _Error(412)
        if resource and int(query.get("generation", generation)) != generation:
            raise NotFound

    def _shown(self, call, resource):
        """Returns the metadata with links that work for the client that asked."""
        path = f"b/{urllib.parse.quote(resource['bucket'])}/o/{urllib.parse.quote(resource['name'], safe='')}"
        return resource | {
            "selfLink": f"{call.base_url}/storage/v1/{path}",
            "mediaLink": f"{call.base_url}/download/storage/v1/{path}?generation={resource['generation']}&alt=media",
        }

    def _resource_reply(self, call, resource):
        return _json_reply(self._shown(call, resource))

    def _upload_name(self, call):
        if "name" in call.query:
            return call.query["name"]
        if call.query.get("uploadType") == "multipart":
            return _multipart(call)[0].get("name", "")
        return json.loads(call.body or b"{}").get("name", "") if call.query.get("uploadType") == "resumable" else ""
