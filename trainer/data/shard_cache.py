"""A cache of shards on a local disk: whoever trains on data in a bucket reads it from there once.

Shards are downloaded in the background while training already reads from the bucket; a shard counts as soon as it lies
under its name, whole and verified. The order of the data does not depend on it, only the time they take. Several
processes of a machine may share a cache: one of them fills a data set's folder, all read it, and no folder that a living
process uses is ever deleted (the kernel frees the locks of dead ones).
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading

from trainer import storage
from trainer.amounts import byte_count
from trainer.errors import InputError, StorageFailed
from trainer.storage import google_cloud

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

_LEASE, _FILLING, _MAKING_ROOM = "in_use.lock", "filling.lock", "making_room.lock"
_UNCHECKED = ".unchecked"
_TRANSFERS = 2  # beside the reads of the training itself
_POLL_SECONDS = 5.0


class ShardCache:
    """Fills the folders of data sets in a cache folder.

    Args:
        folder: of the cache, on a local disk.
        max_bytes: how large it may grow; folders that were used longest ago, and are not in use, make room.
        report: callable that shows one line to a person.
    """

    def __init__(self, folder, max_bytes, report):
        if storage.is_remote(folder):
            raise InputError(f"cache_dir is {folder}: a cache must lie on a disk of this machine")
        if fcntl is None:
            raise InputError("cache_dir: this system has no file locks by which processes can share a cache")
        self.folder, self._max_bytes, self._report = str(folder), max_bytes, report
        self._filled = []  # (folder in the cache, data set's folder, shards)
        self._leases = []
        self._thread = None
        self._stop = threading.Event()

    def folder_for(self, source, manifest):
        """Returns the folder in which shards of a data set will lie, leased for as long as this process lives.

        Args:
            source: folder of the data set, in a bucket.
            manifest: its `Manifest`.

        Raises:
            StorageFailed: if the cache cannot be written.
        """
        shards = [shard for split in manifest.splits.values() for shard in split]
        content = json.dumps([str(source), manifest.fingerprint, [(shard.name, shard.crc32c) for shard in shards]])
        folder = os.path.join(self.folder, hashlib.sha256(content.encode()).hexdigest()[:20])
        try:
            with self._making_room():  # which never deletes a folder that is about to be leased
                os.makedirs(folder, exist_ok=True)
                lease = open(os.path.join(folder, _LEASE), "a")  # noqa: SIM115 (held while the process lives)
                fcntl.flock(lease, fcntl.LOCK_SH)
                os.utime(lease.fileno())
            self._leases.append(lease)
            for shard in shards:
                path = os.path.join(folder, shard.name)
                if os.path.exists(path) and os.path.getsize(path) != shard.bytes:
                    os.remove(path)
        except OSError as error:
            raise StorageFailed(f"cannot use the cache {self.folder}: {error}") from error
        self._filled.append((folder, str(source), shards))
        return folder

    def start(self):
        """Begins to download in the background; does nothing if that was begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._fill_all, name="shard-cache", daemon=True)
            self._thread.start()

    def wait(self, timeout=None):
        """Waits until everything is cached that there is room for; returns whether it is."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self):
        """Stops downloading and gives the folders back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for lease in self._leases:
            lease.close()
        self._leases.clear()

    def _fill_all(self):
        for folder, source, shards in self._filled:
            try:
                self._fill(folder, source, shards)
            except (OSError, StorageFailed) as error:
                self._report(f"warning: the cache {self.folder} is not filled: {error}; {source} is read instead")

    def _fill(self, folder, source, shards):
        """Downloads what is missing of a data set, unless another process does."""
        with open(os.path.join(folder, _FILLING), "a") as lock:
            while missing := [shard for shard in shards if not os.path.exists(os.path.join(folder, shard.name))]:
                if self._stop.is_set():
                    return
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                self._stop.wait(_POLL_SECONDS)
            for entry in os.scandir(folder):  # of a process that died while it downloaded
                if ".part-" in entry.name or entry.name.endswith(_UNCHECKED):
                    os.remove(entry.path)
            room = self._make_room(sum(shard.bytes for shard in missing))
            fitting = []
            for shard in missing:
                room -= shard.bytes
                if room < 0:
                    break
                fitting.append(shard)
            self._download(folder, source, fitting)
        there = [shard for shard in shards if os.path.exists(os.path.join(folder, shard.name))]
        size = byte_count(sum(shard.bytes for shard in there))
        if len(there) == len(shards):
            self._report(f"all {len(shards)} shards of {source} ({size}) are in the cache {self.folder}")
        elif not self._stop.is_set():
            self._report(
                f"{len(there)} of {len(shards)} shards of {source} ({size}) are in the cache {self.folder}, which is full: "
                "the others are read from the bucket. A larger cache_gigabytes has room for all"
            )

    def _download(self, folder, source, shards):
        def fetch(path, shard):
            if self._stop.is_set():
                return
            local = os.path.join(folder, shard.name)
            found = google_cloud.download(path, local + _UNCHECKED)
            if found.crc32c != shard.crc32c:
                os.remove(local + _UNCHECKED)
                raise StorageFailed(f"{path} has CRC-32C {found.crc32c}, the manifest says {shard.crc32c}")
            os.replace(local + _UNCHECKED, local)

        pairs = [(storage.join(source, shard.name), shard) for shard in shards]
        if pairs:
            google_cloud.in_parallel(fetch, pairs, transfers=_TRANSFERS)

    @contextlib.contextmanager
    def _making_room(self):
        os.makedirs(self.folder, exist_ok=True)
        with open(os.path.join(self.folder, _MAKING_ROOM), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, wanted):
        """Deletes folders that nobody uses, the longest unused first, until there is room; returns the bytes there are."""
        with self._making_room():
            sizes = {entry.path: _bytes_in(entry.path) for entry in os.scandir(self.folder) if entry.is_dir()}
            for folder in sorted(sizes, key=_last_use):
                if sum(sizes.values()) + wanted <= self._max_bytes:
                    break
                with open(os.path.join(folder, _LEASE), "a") as lease, contextlib.suppress(BlockingIOError):
                    fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                    del sizes[folder]
            return self._max_bytes - sum(sizes.values())


def _bytes_in(folder):
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())


def _last_use(folder):
    try:
        return os.path.getmtime(os.path.join(folder, _LEASE))
    except OSError:
        return 0.0
