"""Google Cloud Storage through Google's own client: what TensorFlow's file system does not offer.

That is changes on condition (locks, things that must be done once), checksums and sizes from metadata, and whole files up
and down in parallel and verified. Reading while training stays with TensorFlow, whose client also runs on TPU hosts.
Transient faults (408, 429, 5xx, lost connections) are tried again by Google's client for two minutes.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import re
import threading
import types
import uuid

from trainer.errors import InputError, StorageFailed
from trainer.storage.checksums import stream_checksum

SCHEME = "gs://"
DEFAULT_TRANSFERS = 8
_READ_AGAIN = 2


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """What the service says of an object.

    Attributes:
        bytes: its size.
        crc32c: CRC-32C of its content, eight hexadecimal digits.
        generation: number that changes whenever the object is replaced.
    """

    bytes: int
    crc32c: str
    generation: int


def is_google_cloud(path):
    """Returns whether a path lies in Google Cloud Storage."""
    return str(path).startswith(SCHEME)


def split(path):
    """Returns (bucket, name of the object) of a `gs://` path.

    Raises:
        InputError: if it is none, or names no bucket.
    """
    found = re.fullmatch(r"gs://([^/]+)/*(.*)", str(path))
    if not found:
        raise InputError(f"{path} is no path in Google Cloud Storage: they look like gs://bucket/folder/file")
    return found[1], found[2]


@functools.cache
def modules():
    """Returns Google's packages, imported when they are first needed: they take a third of a second."""
    import google.auth.exceptions
    import requests.exceptions
    from google.api_core import exceptions
    from google.cloud import storage
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    return types.SimpleNamespace(
        storage=storage,
        exceptions=exceptions,
        auth_exceptions=google.auth.exceptions,
        request_exceptions=requests.exceptions,
        data_corruption=DataCorruption,
        failures=(
            exceptions.GoogleAPIError,
            requests.exceptions.RequestException,
            DataCorruption,
            InvalidResponse,
            OSError,
        ),
    )


@functools.cache
def _client_of(process_id):
    return modules().storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT") or None)


class _Retries:
    """Google's policy for what fails for a moment, and how often it was needed."""

    def __init__(self):
        self.count = 0
        self._lock = threading.Lock()

    @functools.cached_property
    def policy(self):
        """The policy: pauses that double, for two minutes."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        passes = DEFAULT_RETRY._predicate  # which faults may pass: Google's own list

        def counted(error):
            if not passes(error):
                return False
            with self._lock:
                self.count += 1
            return True

        return DEFAULT_RETRY.with_predicate(counted)


_RETRIES = _Retries()


def retries():
    """Returns how often this process has asked again because of a fault that may pass."""
    return _RETRIES.count


def client():
    """Returns the client of this process (connections do not survive a fork)."""
    with explained("credentials for Google Cloud Storage"):
        return _client_of(os.getpid())


def _blob(path, generation=None):
    bucket, name = split(path)
    return client().bucket(bucket).blob(name, generation=generation)


@contextlib.contextmanager
def explained(path):
    """Turns what Google's client raises into `StorageFailed` with what a person can do about it.

    Args:
        path: what was asked for, for the message.
    """
    google = modules()
    try:
        yield
    except google.auth_exceptions.DefaultCredentialsError as error:
        raise StorageFailed(
            f"there are no credentials for {path}: run `gcloud auth application-default login`, or let "
            "GOOGLE_APPLICATION_CREDENTIALS name the key file of a service account"
        ) from error
    except google.auth_exceptions.GoogleAuthError as error:
        raise StorageFailed(
            f"the credentials for {path} are not accepted ({_first_line(error)}): run `gcloud auth application-default "
            "login` again"
        ) from error
    except google.failures as error:
        raise StorageFailed(f"{path}: {_reason(error)}") from error


def _reason(error):
    """Returns what a person should read about an error of the service or of the way there."""
    code = getattr(error, "code", None)
    if code == 401:
        return "the credentials are not accepted or have expired: run `gcloud auth application-default login`"
    if code == 403:
        return (
            "permission is denied: the account needs the role roles/storage.objectUser on the bucket (`gcloud storage "
            "buckets add-iam-policy-binding gs://BUCKET --member=... --role=roles/storage.objectUser`). The service "
            f"says: {_first_line(error)}"
        )
    if code == 404:
        return f"there is no such bucket or object: {_first_line(error)}"
    return _first_line(error)


def _first_line(error):
    return (str(getattr(error, "message", None) or error).splitlines() or [type(error).__name__])[0][:300]


def _object_of(blob):
    checksum = base64.b64decode(blob.crc32c or "").hex()
    return StoredObject(int(blob.size or 0), checksum, int(blob.generation or 0))


def describe(path):
    """Returns the `StoredObject` of a path, or None if there is none."""
    bucket, name = split(path)
    with explained(path):
        blob = client().bucket(bucket).get_blob(name, retry=_RETRIES.policy)
        return None if blob is None else _object_of(blob)


def objects_in(folder):
    """Returns what lies below a folder: `{path relative to it: StoredObject}`, without markers of folders."""
    bucket, name = split(folder)
    prefix = name.rstrip("/") + "/" if name.strip("/") else ""
    with explained(folder):
        blobs = client().list_blobs(bucket, prefix=prefix, retry=_RETRIES.policy)
        return {blob.name[len(prefix) :]: _object_of(blob) for blob in blobs if not blob.name.endswith("/")}


# Changes on condition.


def read(path):
    """Returns (content, generation) of an object as it is now, past every cache; (None, 0) if there is none."""
    with explained(path):
        for _ in range(_READ_AGAIN):
            with contextlib.suppress(modules().data_corruption):
                return _read_once(path)
        return _read_once(path)


def _read_once(path):
    blob = _blob(path)
    try:
        content = blob.download_as_bytes(retry=_RETRIES.policy)
    except modules().exceptions.NotFound as error:
        if "bucket does not exist" in str(error):
            raise
        return None, 0
    return content, int(blob.generation)


def write_if(path, content, generation):
    """Writes an object if it is still of a generation.

    Args:
        path: the object.
        content: bytes; must differ from what anyone else may write there, such as by a random number in it: an answer of
            the service may be lost, and then the content tells whose write it was.
        generation: what `read` or `write_if` returned; 0: there must be no such object.

    Returns:
        The new generation, or None if somebody else was first.
    """
    exceptions = modules().exceptions
    blob = _blob(path)
    with explained(path):
        try:
            blob.upload_from_string(
                content, "application/octet-stream", if_generation_match=generation, retry=_RETRIES.policy
            )
            return int(blob.generation)
        except exceptions.PreconditionFailed:
            pass
    found, generation = read(path)
    return generation if found == content else None


def delete_if(path, generation):
    """Deletes an object if it is still of a generation; returns whether it is gone by our doing."""
    exceptions = modules().exceptions
    with explained(path):
        try:
            _blob(path).delete(if_generation_match=generation, retry=_RETRIES.policy)
            return True
        except (exceptions.PreconditionFailed, exceptions.NotFound):
            return False


# Whole files.


def upload(local_path, path):
    """Uploads a file; the service compares its CRC-32C before the object appears.

    Returns:
        `StoredObject`.

    Raises:
        StorageFailed: if it cannot be uploaded, or the file changed meanwhile.
    """
    blob = _blob(path)
    expected = _file_crc32c(local_path)
    with explained(path):
        blob.upload_from_filename(local_path, checksum="crc32c", retry=_RETRIES.policy)
        if not blob.crc32c:
            blob.reload()
    found = _object_of(blob)
    if found.crc32c != expected:
        raise StorageFailed(
            f"{path} arrived with CRC-32C {found.crc32c}, but {local_path} had {expected} when the upload began: the file "
            "changed meanwhile, or the network gave other bytes. Upload it again."
        )
    return found


def download(path, local_path):
    """Downloads an object to a file, which appears under its name when size and CRC-32C are the service's.

    Returns:
        `StoredObject`.

    Raises:
        StorageFailed: if it cannot be read, arrives damaged twice, or the disk is full.
    """
    temporary = f"{local_path}.part-{uuid.uuid4().hex[:8]}"
    try:
        for last in (False, True):
            expected = describe(path)
            if expected is None:
                raise StorageFailed(f"{path}: there is no such object")
            with explained(path):
                # The client's own check does not cover every way in which it downloads; ours does.
                _blob(path, expected.generation).download_to_filename(temporary, checksum=None, retry=_RETRIES.policy)
            found = (os.path.getsize(temporary), _file_crc32c(temporary))
            if found == (expected.bytes, expected.crc32c):
                os.replace(temporary, local_path)
                return expected
            if last:
                raise StorageFailed(
                    f"{path} arrives damaged: {found[0]:,} bytes with CRC-32C {found[1]} where the service says "
                    f"{expected.bytes:,} bytes with {expected.crc32c}. Network or a proxy changes what passes."
                )
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def in_parallel(transfer, pairs, *, transfers=DEFAULT_TRANSFERS, on_done=lambda pair, stored: None):
    """Transfers files at the same time.

    Args:
        transfer: `upload` or `download`.
        pairs: list of (from, to).
        transfers: how many at a time.
        on_done: callable `(pair, StoredObject)`, called here after each.

    Raises:
        StorageFailed: of the first that failed; those under way are finished, the others are not begun.
    """
    with concurrent.futures.ThreadPoolExecutor(max(1, min(transfers, len(pairs)))) as pool:
        futures = {pool.submit(transfer, *pair): pair for pair in pairs}
        try:
            for future in concurrent.futures.as_completed(futures):
                on_done(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _file_crc32c(path):
    with open(path, "rb") as file:
        return stream_checksum(file)
