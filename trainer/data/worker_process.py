"""The start of a worker process. TensorFlow is imported late, so that it can be told before to be quiet."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

from trainer.environment import import_tensorflow_quietly


def start():
    """Makes a process a good neighbour of its siblings: quiet, one thread, no accelerator, no orphan."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import_tensorflow_quietly(os.environ)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


def _end_with_parent():
    """Ends this process when its parent is gone, even by `kill -9`, after which nobody would ever tell it."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
