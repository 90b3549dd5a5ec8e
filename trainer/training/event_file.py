"""TensorBoard event files: scalars and text of one run that may stop and resume any number of times."""

import contextlib
import os
import shutil
import socket
import tempfile
import time

import tensorflow as tf

from trainer import storage

# Every upload to an object store sends the whole file again.
_UPLOAD_EVERY_SECONDS = 120.0
_FLUSH_EVERY_SECONDS = 10.0


class EventFile:
    """Appends to a new event file in a TensorBoard folder.

    `tf.summary` can neither say that a run was resumed nor survive a full disk with a readable file, so the events are
    written as what they are: protocol buffers in a TFRecord file.

    Args:
        folder: the TensorBoard folder, local or `gs://`.
        resumed_step: the step training continues from; points after it, from the life before, are hidden by
            TensorBoard.

    Raises:
        OSError, tf.errors.OpError: from every method, if the storage fails. The file is then broken: close it and open
            another one.
    """

    def __init__(self, folder, resumed_step):
        # The number after the time keeps apart what one process opens within a second.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}.v2"
        self._target = storage.join(folder, name)
        self._staging = None
        path = self._target
        if storage.is_remote(folder):
            self._staging = tempfile.mkdtemp(prefix="bert-trainer-tensorboard-")
            path = os.path.join(self._staging, name)
        else:
            storage.make_folder(folder)
        self._path = path
        self._writer = tf.io.TFRecordWriter(path)
        self._flushed_at = self._uploaded_at = time.monotonic()
        self._write(tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A session start tells TensorBoard to drop what it has of this step and later ones.
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._write(tf.compat.v1.Event(wall_time=time.time(), step=resumed_step + 1, session_log=start))
        self._writer.flush()

    def scalars(self, step, values):
        """Adds scalars: dict of tag -> number."""
        event = tf.compat.v1.Event(wall_time=time.time(), step=int(step))
        for tag, number in values.items():
            # Not as a tensor: some readers hide stale points only of plain values.
            event.summary.value.add(tag=tag, simple_value=float(number))
        self._write(event)

    def text(self, step, tag, text):
        """Adds a text, shown as it is, in a fixed-width font."""
        indented = "".join(f"    {line}\n" for line in text.splitlines())  # a code block of Markdown
        event = tf.compat.v1.Event(wall_time=time.time(), step=int(step))
        value = event.summary.value.add(tag=tag, tensor=tf.make_tensor_proto(indented))
        value.metadata.plugin_data.plugin_name = "text"
        self._write(event)

    def flush(self, force=False):
        """Makes the events visible to readers; not oftener than every few seconds unless forced."""
        now = time.monotonic()
        if force or now - self._flushed_at >= _FLUSH_EVERY_SECONDS:
            self._flushed_at = now
            self._writer.flush()
        if self._staging is not None and (force or now - self._uploaded_at >= _UPLOAD_EVERY_SECONDS):
            self._uploaded_at = now
            self._writer.flush()
            storage.copy_file(self._path, self._target)

    def close(self):
        """Flushes and closes the file."""
        try:
            self.flush(force=True)
        finally:
            with contextlib.suppress(tf.errors.OpError):
                self._writer.close()
            if self._staging is not None:
                shutil.rmtree(self._staging, ignore_errors=True)

    def _write(self, event):
        self._writer.write(event.SerializeToString())
