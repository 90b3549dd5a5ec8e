"""Saves checkpoints until it is killed; one process serves many lives, because importing TensorFlow takes seconds.

Usage: python saver_process.py FOLDER; every line on the standard input forks a new life that resumes and goes on.
"""

import os
import sys

import tensorflow as tf

from trainer.training.checkpoints import CheckpointManager


def value_at(step):
    """Returns what the variables hold at a step: any mixture of two steps shows."""
    return {"vector": [float(step), step * 0.5, -float(step)], "step": step}


def live(folder):
    """Resumes, checks the restored values and saves step after step, for ever."""
    variables = {"weights": {"vector": tf.Variable(tf.zeros(3))}, "step": tf.Variable(0, dtype=tf.int64)}
    vector, counter = variables["weights"]["vector"], variables["step"]
    # All messages go out unbuffered, whole lines at a time: the parent reads while this process dies.
    say = lambda text: os.write(1, f"{text}\n".encode())
    manager = CheckpointManager(folder, variables, keep_last=2, keep_every=50, report=say)
    step = manager.restore_latest() or 0
    if step and (vector.numpy().tolist() != value_at(step)["vector"] or counter.numpy() != step):
        say(f"WRONG VALUES at step {step}: {vector.numpy()} {counter.numpy()}")
    say(f"resumed {step}")
    while True:
        step += 1
        vector.assign(value_at(step)["vector"])
        counter.assign(step)
        manager.save(step)
        if manager.last_save is not None:
            say(f"saved {manager.last_save.step}")


if __name__ == "__main__":
    os.write(1, b"ready\n")
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            live(sys.argv[1])
        os.write(1, f"pid {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"dead\n")
