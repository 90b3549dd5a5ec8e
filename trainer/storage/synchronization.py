"""Copying a folder between a disk and a bucket: only what differs, verified, and whole at every moment.

Files that say that others are whole (a manifest, the marker of a checkpoint) are copied last, so that a copy which was
interrupted counts for nothing until the same call completes it.
"""

import dataclasses
import os

from trainer.errors import InputError, StorageFailed
from trainer.storage import files, google_cloud

_LAST = ("manifest.json", "COMMITTED")


@dataclasses.dataclass(frozen=True)
class Difference:
    """What a target folder lacks of a source folder.

    Attributes:
        to_copy: `{name: bytes}` of files that are missing there, or differ in size or checksum.
        same: `{name: bytes}` of files that are there.
        extra: names of files that are only there; they stay.
    """

    to_copy: dict
    same: dict
    extra: tuple


def compare_folders(source, target):
    """Compares two folders, of which one lies in Google Cloud Storage and the other on a disk.

    Sizes are compared, and where they agree checksums: the service tells its own, files on the disk are read.

    Raises:
        InputError: if both lie in the same kind of place, or there is no source.
        StorageFailed: if either cannot be read.
    """
    if google_cloud.is_google_cloud(source) == google_cloud.is_google_cloud(target):
        raise InputError(
            f"{source} and {target}: one of them must lie in Google Cloud Storage (gs://...), the other on a disk. "
            "`gcloud storage cp -r` copies between buckets, `cp -r` between folders."
        )
    there, wanted = _files_in(target), _files_in(source)
    if not wanted:
        raise InputError(f"there are no files in {source}")
    same, to_copy = {}, {}
    for name, file in wanted.items():
        (same if name in there and file.equals(there[name]) else to_copy)[name] = file.bytes
    return Difference(to_copy, same, tuple(sorted(set(there) - set(wanted))))


def synchronize(
    source, target, difference, *, transfers=google_cloud.DEFAULT_TRANSFERS, on_done=lambda name, size: None
):
    """Copies what `compare_folders` found to differ.

    Args:
        source, target: the folders.
        difference: `Difference`.
        transfers: files that are copied at the same time.
        on_done: callable `(name, bytes)`, called after each.

    Raises:
        StorageFailed: of the first file that cannot be copied; what is copied stays, the next call copies the rest.
    """
    for name in difference.to_copy:
        if os.path.basename(name) in _LAST:  # of what was there before; it must not speak for a mixture
            files.remove(files.join(target, name))
    for last in (False, True):
        names = [name for name in difference.to_copy if (os.path.basename(name) in _LAST) == last]
        pairs = {(files.join(source, name), files.join(target, name)): name for name in names}
        for _, path in pairs:
            if not google_cloud.is_google_cloud(path):
                _make_folder(os.path.dirname(path))
        google_cloud.in_parallel(
            files.copy_file,
            list(pairs),
            transfers=transfers,
            on_done=lambda pair, _, pairs=pairs: on_done(pairs[pair], difference.to_copy[pairs[pair]]),
        )


def _make_folder(path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise StorageFailed(f"cannot make the folder {path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _File:
    """A file on either side; its checksum is made when sizes agree."""

    path: str
    bytes: int
    crc32c: str | None = None

    def equals(self, other):
        return self.bytes == other.bytes and self._checksum() == other._checksum()

    def _checksum(self):
        return self.crc32c or files.file_checksum(self.path)


def _files_in(folder):
    """Returns `{relative name: _File}` of a folder and those below it, without what a copy left half done."""
    if google_cloud.is_google_cloud(folder):
        objects = google_cloud.objects_in(folder).items()
        return {name: _File(files.join(folder, name), stored.bytes, stored.crc32c) for name, stored in objects}
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if ".part-" not in name and os.path.isfile(path):
                relative = os.path.relpath(path, folder).replace(os.sep, "/")
                found[relative] = _File(path, os.path.getsize(path))
    return found
