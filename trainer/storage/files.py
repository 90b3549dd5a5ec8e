"""Files, local or `gs://`: reading, writing and listing.

TensorFlow's file systems do it, but for whole objects in Google Cloud Storage, which go through Google's client, because
that compares checksums. A write is atomic: a reader sees the old content or the new, never a part. Checksums are CRC-32C
(Castagnoli), the one that Google Cloud Storage and TFRecord use.
"""

import contextlib
import json
import os
import tempfile
import uuid

import tensorflow as tf

from trainer.errors import StorageFailed
from trainer.storage import google_cloud
from trainer.storage.checksums import stream_checksum


def is_remote(path):
    """Returns whether `path` lies in an object store (`gs://...`) rather than on a mounted file system."""
    return "://" in str(path) and not str(path).startswith("file://")


def join(path, *parts):
    """Joins path components with `/`, which every file system here understands."""
    return os.path.join(str(path), *parts)


def exists(path):
    """Returns whether a file or folder is there."""
    return tf.io.gfile.exists(str(path))


def is_folder(path):
    """Returns whether `path` is a folder."""
    return tf.io.gfile.isdir(str(path))


def size(path):
    """Returns the size of a file in bytes."""
    return tf.io.gfile.stat(str(path)).length


def listing(path):
    """Returns the sorted names (not paths) in a folder, without trailing slashes; empty if the folder is not there."""
    try:
        return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(str(path)))
    except tf.errors.NotFoundError:
        return []


def make_folder(path):
    """Makes a folder and its parents; does nothing where it exists."""
    tf.io.gfile.makedirs(str(path))


def remove(path):
    """Removes a file or a whole folder; does nothing where there is none."""
    path = str(path)
    try:
        if tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)
        elif tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)
    except tf.errors.NotFoundError:
        pass


def rename(source, target):
    """Renames a file or a local folder, replacing a file that is there."""
    tf.io.gfile.rename(str(source), str(target), overwrite=True)


def copy_file(source, target):
    """Copies a file, replacing the one that is there; an object appears only when its upload is complete and verified.

    Raises:
        StorageFailed: if an upload or download fails, or gives other bytes than the source has.
    """
    source, target = str(source), str(target)
    if google_cloud.is_google_cloud(target) and not is_remote(source):
        google_cloud.upload(source, target)
    elif google_cloud.is_google_cloud(source) and not is_remote(target):
        google_cloud.download(source, target)
    else:
        tf.io.gfile.copy(source, target, overwrite=True)


@contextlib.contextmanager
def local_copies(paths):
    """Yields local paths of files of one folder: themselves, or verified copies in a temporary folder while it lasts.

    Args:
        paths: list of paths, all local or none.
    """
    if not any(is_remote(path) for path in paths):
        yield list(paths)
        return
    with tempfile.TemporaryDirectory(prefix="bert-trainer-") as folder:
        pairs = [(path, os.path.join(folder, os.path.basename(path))) for path in paths]
        google_cloud.in_parallel(copy_file, pairs)
        yield [local for _, local in pairs]


def read_bytes(path):
    """Returns the whole content of a file as bytes; of an object in Google Cloud Storage verified.

    Raises:
        FileNotFoundError, tf.errors.NotFoundError: if there is none.
    """
    if google_cloud.is_google_cloud(path):
        content, generation = google_cloud.read(path)
        if not generation:
            raise FileNotFoundError(f"there is no {path}")
        return content
    with tf.io.gfile.GFile(str(path), "rb") as file:
        return file.read()


def read_text(path):
    """Returns the whole content of a UTF-8 file."""
    return read_bytes(path).decode("utf-8")


def read_json(path):
    """Returns the parsed content of a JSON file."""
    return json.loads(read_text(path))


def flush_to_disk(path):
    """Asks the operating system to put a local file (or a folder's entries) on the disk; no-op for object stores."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_writer(path):
    """Opens `path` for binary writing; the file appears under its name, complete, when the block ends without error.

    On a mounted file system the bytes go to a temporary file beside it which is flushed to disk and renamed; for Google
    Cloud Storage to one in the system's temporary folder, which is uploaded and verified.

    Raises:
        StorageFailed: if writing fails (full disk, no permission); nothing is left behind.
    """
    path = str(path)
    if google_cloud.is_google_cloud(path):
        with tempfile.NamedTemporaryFile(prefix="bert-trainer-upload-") as file:
            yield file
            file.flush()
            google_cloud.upload(file.name, path)
        return
    if is_remote(path):
        try:
            with tf.io.gfile.GFile(path, "wb") as file:
                yield file
        except tf.errors.OpError as error:
            raise StorageFailed(f"cannot write {path}: {error.message}") from error
        return
    temporary = f"{path}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_to_disk(os.path.dirname(path) or ".")
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def write_bytes(path, content):
    """Writes a whole file atomically."""
    with atomic_writer(path) as file:
        file.write(content)


def write_text(path, text):
    """Writes a whole UTF-8 file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path, value):
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_checksum(path):
    """Returns the CRC-32C of a file's content as eight hexadecimal digits, reading it in pieces.

    Of an object in Google Cloud Storage the service tells it, and nothing is read.

    Raises:
        FileNotFoundError, tf.errors.NotFoundError: if there is none.
    """
    if google_cloud.is_google_cloud(path):
        found = google_cloud.describe(path)
        if found is None:
            raise FileNotFoundError(f"there is no {path}")
        return found.crc32c
    with tf.io.gfile.GFile(str(path), "rb") as file:
        return stream_checksum(file)
