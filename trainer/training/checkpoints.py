"""Checkpoints: written in the background, committed by a marker, verified before use, kept by a simple rule."""

import contextlib
import dataclasses
import datetime
import os
import re
import shutil
import tempfile
import threading
import time

import tensorflow as tf

from trainer import storage
from trainer.errors import InputError, StorageFailed
from trainer.training import checkpoint_content

MANIFEST_NAME = "manifest.json"
MARKER_NAME = "COMMITTED"
_FORMAT = "bert-trainer checkpoint"
_FORMAT_VERSION = 1
_STEP_FOLDER = re.compile(r"step_(\d{8,})$")
_STORAGE_ERRORS = (OSError, tf.errors.OpError, StorageFailed)


@dataclasses.dataclass(frozen=True)
class SaveInfo:
    """What one save took.

    Attributes:
        step: the step that was saved.
        wait_seconds: how long `save` waited for the write before.
        copy_seconds: how long the variables took to copy to host memory; with `wait_seconds` the stall of training.
        write_seconds: how long the background write took, retries included.
        bytes: bytes written.
        error: why the save failed in the end; None if it is committed.
    """

    step: int
    wait_seconds: float
    copy_seconds: float
    write_seconds: float
    bytes: int
    error: str | None = None


class CheckpointManager:
    """Saves and restores the variables of a run.

    A checkpoint is a folder `step_00001200` with `weights.index` and `weights.data-...` (the format of
    `tf.train.Checkpoint`), `manifest.json` (bytes and CRC-32C of each file, step, metadata) and, written last,
    `COMMITTED`, which holds the checksum of the manifest. Without `COMMITTED` it does not count. Nothing depends on
    renaming, which is not atomic in object stores.

    Args:
        folder: where the checkpoints lie, local or `gs://`.
        variables: nested dict of names -> `tf.Variable` or `keras.Variable`. Variables of a distribution strategy are
            saved once and restored into every replica, so that another topology can read them.
        keep_last: how many of the newest checkpoints stay.
        keep_every: checkpoints whose step is a multiple of this stay for ever; None for no such ones.
        asynchronous: whether to write in a background thread.
        is_chief: whether this process writes. Others restore only, and change nothing in the folder.
        metadata: dict, or callable that returns one, put into the manifest (JSON values).
        report: callable that shows one line to a person.
        on_commit: callable `(manifest)`, called for each checkpoint that was saved, before old ones are deleted; in the
            thread that writes.
        kept_steps: callable that returns steps whose checkpoints stay besides; asked in the same thread.
        retry_seconds: pauses before each new attempt of a failed write.
    """

    def __init__(
        self,
        folder,
        variables,
        *,
        keep_last=3,
        keep_every=None,
        asynchronous=True,
        is_chief=True,
        metadata=None,
        report=print,
        on_commit=lambda manifest: None,
        kept_steps=tuple,
        retry_seconds=(1.0, 4.0, 15.0),
    ):
        if keep_last < 1:
            raise InputError(f"keep_last must be at least 1, got {keep_last}")
        if keep_every is not None and keep_every < 1:
            raise InputError(f"keep_every must be at least 1 or None, got {keep_every}")
        self.folder = str(folder)
        self.last_save = None
        self.failures = 0
        self._variables = checkpoint_content.flatten(variables)
        self._keep_last, self._keep_every = keep_last, keep_every
        self._asynchronous, self._is_chief = asynchronous, is_chief
        self._metadata = metadata if callable(metadata) else (lambda: dict(metadata or {}))
        self._report = report
        self._on_commit, self._kept_steps = on_commit, kept_steps
        self._retry_seconds = tuple(retry_seconds)
        self._thread = None
        self._in_hand = None  # the step that this process restored or last saved: no need to write it again

    def steps(self):
        """Returns the steps of the committed checkpoints in rising order; does not verify them."""
        return [step for step, committed in self._scan() if committed]

    def path(self, step):
        """Returns the folder of the checkpoint of a step."""
        return storage.join(self.folder, f"step_{step:08d}")

    def prefix(self, step):
        """Returns what `tf.train.load_checkpoint` takes to read the checkpoint of a step."""
        return storage.join(self.path(step), checkpoint_content.PREFIX)

    # Saving.

    def save(self, step, wait=False):
        """Copies the variables to host memory and writes them, by default while training goes on.

        At most one write is under way: a newer save first waits for the one before. A write that fails is tried again,
        then given up with a warning: training goes on and the last good checkpoint stays.

        Args:
            step: optimizer steps done.
            wait: whether to return only when the checkpoint is committed.

        Returns:
            Whether there was something to save: not on other hosts than the chief, nor for the step that was restored
            or saved last.

        Raises:
            StorageFailed: with `wait`, if it could not be written.
        """
        step = int(step)
        if not self._is_chief:
            return False
        started = time.perf_counter()
        self._join()
        if step == self._in_hand:
            return False
        waited = time.perf_counter()
        snapshot = checkpoint_content.copy_to_host(self._variables)
        manifest = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "step": step,
            "saved_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "metadata": self._metadata(),
        }
        copied = time.perf_counter()
        times = (waited - started, copied - waited)
        if self._asynchronous:
            # Not a daemon: a process that ends in an orderly way finishes its last write.
            self._thread = threading.Thread(
                target=self._write, args=(step, snapshot, manifest, times), name="checkpoint-writer"
            )
            self._thread.start()
        else:
            self._write(step, snapshot, manifest, times)
        if wait:
            self.wait()
        return True

    @property
    def saving(self):
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self):
        """Waits for the write under way.

        Raises:
            StorageFailed: if the last save failed.
        """
        self._join()
        if self.last_save is not None and self.last_save.error is not None:
            steps = self.steps()
            raise StorageFailed(
                f"could not save the checkpoint {self.path(self.last_save.step)}: {self.last_save.error}. "
                + (f"The last good checkpoint is of step {steps[-1]}." if steps else "There is no checkpoint.")
            )

    def _join(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step, snapshot, manifest, times):
        """Writes a snapshot, again and again if need be; runs in the background and never raises an error."""
        started = time.perf_counter()
        size, error = 0, None
        for pause in (*self._retry_seconds, None):
            try:
                size, error = self._write_once(step, snapshot, manifest), None
                break
            except Exception as problem:  # whatever it is, it must not end training
                error = f"{getattr(problem, 'message', None) or problem}" or type(problem).__name__
                with contextlib.suppress(*_STORAGE_ERRORS):
                    storage.remove(self.path(step))  # gives a full disk back what the attempt took
            if pause is not None:
                self._report(f"warning: saving step {step} failed, trying again in {pause:.0f} s: {error}")
                time.sleep(pause)
        if error is None:
            self._in_hand = step
            try:
                self._on_commit(manifest)
            except _STORAGE_ERRORS as problem:
                self._report(f"warning: {getattr(problem, 'message', None) or problem}; training goes on")
            self._delete_old()
        else:
            self.failures += 1
            self._report(
                f"warning: gave up saving step {step} ({error}); training goes on, the checkpoints before it stay. "
                f"Make room or repair {self.folder} before the next save."
            )
        self.last_save = SaveInfo(step, *times, time.perf_counter() - started, size, error)

    def _write_once(self, step, snapshot, manifest):
        """Writes and commits one checkpoint; returns its bytes."""
        target = self.path(step)
        if storage.exists(target):
            storage.remove(storage.join(target, MARKER_NAME))  # first of all it stops to count
            storage.remove(target)
        storage.make_folder(target)
        with _local_stage(target) as stage:
            checkpoint_content.write(os.path.join(stage, checkpoint_content.PREFIX), snapshot)
            files = {}
            for name in storage.listing(stage):
                path = os.path.join(stage, name)
                storage.flush_to_disk(path)
                files[name] = {"bytes": storage.size(path), "crc32c": storage.file_checksum(path)}
                if stage != target:
                    storage.copy_file(path, storage.join(target, name))
        manifest_path = storage.join(target, MANIFEST_NAME)
        storage.write_json(manifest_path, manifest | {"files": files})
        storage.flush_to_disk(target)
        storage.flush_to_disk(self.folder)
        storage.write_text(storage.join(target, MARKER_NAME), storage.file_checksum(manifest_path) + "\n")
        return sum(file["bytes"] for file in files.values())

    def _delete_old(self):
        steps = self.steps()
        kept = set(self._kept_steps())
        for step in steps[: -self._keep_last]:
            if step in kept or (self._keep_every is not None and step % self._keep_every == 0):
                continue
            try:
                for name in (MARKER_NAME, MANIFEST_NAME):
                    storage.remove(storage.join(self.path(step), name))
                storage.remove(self.path(step))
            except _STORAGE_ERRORS as error:
                self._report(f"warning: cannot delete the old checkpoint {self.path(step)}: {error}")

    # Restoring.

    def restore_latest(self):
        """Restores the newest checkpoint that is committed and passes verification.

        The chief also tidies up: what an interrupted save left is deleted, a damaged checkpoint is moved aside to
        `damaged_step_...` with a warning. With several hosts let the chief go first and the others `restore` its step.

        Returns:
            The step, or None if there is no checkpoint yet.

        Raises:
            StorageFailed: if there are checkpoints but none is good, or the storage cannot be read.
            InputError: if the checkpoint is of another model.
        """
        self._join()
        with _reading(self.folder):
            scan = self._scan()
            for step, committed in scan:
                if not committed and self._is_chief:
                    self._clear_unfinished(step)
            reasons = []
            for step, committed in reversed(scan):
                if not committed:
                    continue
                reason = self._problem(step)
                if reason is None:
                    self._assign(step)
                    return step
                reasons.append(f"step {step}: {reason}")
                self._move_aside(step, "damaged", reason)
            damaged = [name for name in storage.listing(self.folder) if name.startswith("damaged_step_")]
        if reasons or damaged:
            raise StorageFailed(
                f"none of the checkpoints in {self.folder} is good: {'; '.join(reasons) or ', '.join(damaged)}. "
                "Training does not start from scratch by itself: copy a good checkpoint there, or give another "
                "--run_dir, or delete the damaged ones to begin anew."
            )
        return None

    def restore(self, step):
        """Restores the checkpoint of a step after verifying it.

        Raises:
            InputError: if there is none of that step, or it is of another model.
            StorageFailed: if it is damaged or cannot be read.
        """
        self._join()
        with _reading(self.folder):
            steps = self.steps()
            if step not in steps:
                there = ", ".join(str(s) for s in steps) or "none"
                raise InputError(f"{self.folder} holds no checkpoint of step {step}; there are: {there}")
            reason = self._problem(step)
            if reason is not None:
                raise StorageFailed(f"the checkpoint {self.path(step)} is damaged: {reason}")
            self._assign(step)

    def verify(self, step):
        """Compares a checkpoint with its manifest: sizes and checksums of all files.

        Returns:
            None if it is good, else a text that names the file and what is wrong with it.

        Raises:
            StorageFailed: if the storage cannot be read.
        """
        with _reading(self.folder):
            return self._problem(step)

    def read_manifest(self, step):
        """Returns the content of a committed checkpoint's manifest: `step`, `saved_at`, `metadata`, `files`."""
        with _reading(self.folder):
            return storage.read_json(storage.join(self.path(step), MANIFEST_NAME))

    def _scan(self):
        """Returns (step, whether it is committed) of every checkpoint folder in rising order."""
        found = []
        for name in storage.listing(self.folder):
            if match := _STEP_FOLDER.match(name):
                committed = storage.exists(storage.join(self.folder, name, MARKER_NAME))
                found.append((int(match.group(1)), committed))
        return sorted(found)

    def _problem(self, step):
        folder = self.path(step)
        name = MANIFEST_NAME
        try:
            marker = storage.read_text(storage.join(folder, MARKER_NAME)).strip()
            if (found := storage.file_checksum(storage.join(folder, name))) != marker:
                return f"{name} has CRC-32C {found} where {MARKER_NAME} says {marker[:16]!r}"
            manifest = storage.read_json(storage.join(folder, name))
            if manifest["step"] != step:
                return f"{name} is of step {manifest['step']}"
            for name, expected in manifest["files"].items():
                path = storage.join(folder, name)
                if (size := storage.size(path)) != expected["bytes"]:
                    return f"{name} has {size:,} bytes where {MANIFEST_NAME} says {expected['bytes']:,}"
                if (found := storage.file_checksum(path)) != expected["crc32c"]:
                    return f"{name} has CRC-32C {found} where {MANIFEST_NAME} says {expected['crc32c']}"
        except (tf.errors.NotFoundError, FileNotFoundError):
            return f"{name} is missing"
        except (ValueError, KeyError, TypeError) as error:
            return f"{name} cannot be read ({error})"
        return None

    def _assign(self, step):
        folder = self.path(step)
        names = [name for name in storage.listing(folder) if name.startswith(f"{checkpoint_content.PREFIX}.")]
        # Of an object store whole files are read, verified: its client reads tensors one after the other, and unverified.
        with storage.local_copies([storage.join(folder, name) for name in names]) as local:
            prefix = storage.join(os.path.dirname(local[0]), checkpoint_content.PREFIX)
            checkpoint_content.read_into(self._variables, prefix)
        self._in_hand = step

    def _clear_unfinished(self, step):
        """Deletes what an interrupted save left; keeps it if it may be whole: someone may have lost only the marker."""
        if storage.exists(storage.join(self.path(step), MANIFEST_NAME)):
            self._move_aside(step, "unfinished", f"{MARKER_NAME} is missing")
        else:
            self._report(f"removing the unfinished checkpoint of step {step}: the job ended while saving it")
            storage.remove(self.path(step))

    def _move_aside(self, step, word, reason):
        name = os.path.basename(self.path(step))
        message = f"warning: the checkpoint {self.path(step)} is {word}: {reason}"
        if not self._is_chief:
            self._report(f"{message}; left there")
            return
        aside = storage.join(
            self.folder, f"{word}_{name}-{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S%f}"
        )
        self._report(f"{message}; moved aside to {os.path.basename(aside)}")
        storage.rename(self.path(step), aside)


@contextlib.contextmanager
def _local_stage(target):
    """Yields a local folder to write into: `target` itself, or a temporary one if that is an object store."""
    if not storage.is_remote(target):
        yield target
        return
    stage = tempfile.mkdtemp(prefix="bert-trainer-checkpoint-")
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def _reading(folder):
    """Turns errors of the storage, which say nothing about the checkpoints themselves, into `StorageFailed`."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise StorageFailed(
            f"cannot read the checkpoints in {folder}: {getattr(error, 'message', None) or error}"
        ) from error
