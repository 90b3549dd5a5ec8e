"""What a test controls and sees of the service: faults and latency to commit, and the log of requests."""

import collections
import dataclasses
import fnmatch
import threading

KINDS = {
    "status": "the answer is an error, `status`; nothing is done",
    "expired_token": "401 to the token of the first matching request, until another comes or `clear`",
    "reset": "the connection is reset before an answer; nothing is done",
    "reset_in_body": "reset in the middle of a download; of an upload, the service keeps what came before",
    "lost_answer": "it is done, then the connection is reset before an answer",
    "slow_first_byte": "it is done, then `seconds` of silence before the answer",
    "stall": "`seconds` of silence in the middle of the answer's body",
    "truncated": "the connection ends in the middle of the body that Content-Length announced",
    "short": "less of the object than asked for, with an honest Content-Length and Content-Range",
    "corrupted": "one byte of what is read or written is another",
}


@dataclasses.dataclass
class Request:
    """A request as the log keeps it.

    Attributes:
        method: of HTTP.
        operation: `read`, `write` (also copies, composition, changes of metadata, new buckets), `metadata`, `list` or
            `delete`.
        bucket: name, '' if there is none.
        object: name, '' for requests about a bucket.
        byte_range: the Range header, if there is one.
        client: `tensorflow` or `python`.
        token: the Authorization header, if there is one.
        status: of HTTP; None: not answered yet, or never.
        bytes_up: size of the body of the request.
        bytes_down: size of the body of the answer, as far as it is sent.
        fault: kind of the fault that was committed, if any.
    """

    method: str
    operation: str
    bucket: str
    object: str
    byte_range: str | None = None
    client: str = ""
    token: str | None = None
    status: int | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    fault: str | None = None

    def matches(self, pattern):
        """Returns whether the request fits a pattern.

        Args:
            pattern: operations or methods, joined by `|` (`*`: any), and after a space, if given, a glob for the path:
                `read`, `PUT gs://bucket/run/*`, `write|delete *.json`, `*`.
        """
        operations, _, path = pattern.partition(" ")
        allowed = operations.split("|")
        fits = "*" in allowed or self.operation in allowed or self.method in allowed
        return fits and fnmatch.fnmatchcase(f"gs://{self.bucket}/{self.object}", path or "*")


@dataclasses.dataclass
class Fault:
    """A fault that waits for its requests; the fields are the arguments of `Faults.add`."""

    match: str
    kind: str
    times: int | None = 1
    after: int = 0
    status: int = 503
    seconds: float = 60.0
    at: float | int = 0.5
    hits: int = 0
    token: str | None = None

    def strikes(self, request):
        """Returns whether it is to be committed on this request, and counts."""
        if not request.matches(self.match):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.kind == "expired_token":
            if self.hits == 0:
                self.token = request.token
            if request.token != self.token:
                return False
        elif self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True

    def position(self, num_bytes):
        """Returns the place in a body of `num_bytes` where it happens."""
        return min(num_bytes, int(self.at * num_bytes) if isinstance(self.at, float) else self.at)


class Faults:
    """The faults to commit and the latency of every request."""

    def __init__(self):
        self._lock = threading.Lock()
        self._faults = []
        self._latency = 0.0
        self._cleared = threading.Event()

    def add(self, match, kind, *, times=1, after=0, status=503, seconds=60.0, at=0.5):
        """Adds a fault; of several that match a request, the first one added is committed.

        Args:
            match: pattern of requests, see `Request.matches`.
            kind: one of `KINDS`.
            times: how many matching requests it strikes; None: all of them, until `clear`.
            after: how many matching requests go through before.
            status: the HTTP status, for `status`.
            seconds: the length of the silence, for `slow_first_byte` and `stall`; `clear` ends it.
            at: where in the body it happens: a fraction if float, a number of bytes if int.

        Returns:
            A number for `hits`.
        """
        if kind not in KINDS:
            raise ValueError(f"no such kind of fault: {kind}. There are: {', '.join(KINDS)}")
        status = 401 if kind == "expired_token" else status
        with self._lock:
            self._faults.append(Fault(match, kind, times, after, status, seconds, at))
            return len(self._faults) - 1

    def make_read_only(self, bucket):
        """Has every later change in a bucket (`gs://name`) refused, 403, until `clear`."""
        return self.add(f"write|delete {bucket}/*", "status", status=403, times=None)

    def hits(self, number):
        """Returns how many requests the fault has struck that `add` returned this number for."""
        with self._lock:
            return self._faults[number].hits

    def set_latency(self, seconds):
        """Has every request wait before it is done."""
        self._latency = seconds

    def clear(self):
        """Removes all faults and the latency, and ends every silence."""
        with self._lock:
            self._faults = []
            self._latency = 0.0
            self._cleared.set()
            self._cleared = threading.Event()

    # What the proxy calls.

    def strike(self, request):
        """Returns the fault to commit on a request, or None."""
        with self._lock:
            return next((fault for fault in self._faults if fault.strikes(request)), None)

    def silence(self, seconds=None):
        """Waits, by default for the latency, or until `clear`."""
        with self._lock:
            seconds = self._latency if seconds is None else seconds
            cleared = self._cleared
        if seconds:
            cleared.wait(seconds)


Count = collections.namedtuple("Count", ["requests", "bytes_up", "bytes_down"])


class Requests:
    """The log of requests, in the order in which they came."""

    def __init__(self):
        self._came = threading.Condition()
        self._requests = []

    def begin(self, request):
        """Logs a request; its fields may still change."""
        with self._came:
            self._requests.append(request)
            self._came.notify_all()

    def clear(self):
        """Forgets all requests; marks begin at 0 again."""
        with self._came:
            self._requests = []

    def mark(self):
        """Returns a mark of now for `since`."""
        with self._came:
            return len(self._requests)

    def since(self, mark=0, match="*"):
        """Returns the list of `Request`s since a mark that fit a pattern (see `Request.matches`)."""
        with self._came:
            return [request for request in self._requests[mark:] if request.matches(match)]

    def counts(self, by="operation", mark=0, match="*"):
        """Returns `{value: Count}` of requests since a mark that fit a pattern, by the value of one of their fields."""
        sums = collections.defaultdict(lambda: Count(0, 0, 0))
        for request in self.since(mark, match):
            before = sums[getattr(request, by)]
            sums[getattr(request, by)] = Count(
                before.requests + 1, before.bytes_up + request.bytes_up, before.bytes_down + request.bytes_down
            )
        return dict(sums)

    def wait_for(self, match, count=1, mark=0, timeout=30.0):
        """Waits until `count` requests since a mark fit a pattern; returns them.

        Raises:
            TimeoutError: if they do not come within `timeout` seconds.
        """
        with self._came:
            if not self._came.wait_for(lambda: len(self.since(mark, match)) >= count, timeout):
                raise TimeoutError(f"fewer than {count} requests {match!r} in {timeout} s: {self.since(mark)}")
            return self.since(mark, match)
