"""Worker processes: independent jobs on all cores, with clear errors when a worker dies."""

import concurrent.futures
import multiprocessing
import os

from trainer.data import worker_process
from trainer.errors import TrainingFailed


def available_cores():
    """Returns how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


class Workers:
    """Processes that work on jobs; with none, jobs run in this process.

    Processes are spawned, since TensorFlow does not survive a fork, use one thread each, and leave accelerators alone.

    Args:
        count: number of processes, or 0.
    """

    on_this_machine = True  # and see its files

    def __init__(self, count):
        self.count = count
        self._pool = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:  # idle, or at work on something that nobody waits for any more
                process.terminate()
            for process in processes:
                process.join()

    @property
    def description(self):
        """What the summary of the work says of them."""
        return {"workers": self.count}

    def run(self, function, jobs):
        """Runs `function(job)` for every job and yields (job's place, result) in the order in which they finish.

        Args:
            function: a function at the top of a module.
            jobs: list of arguments.

        Raises:
            TrainingFailed: if a worker process dies.
            Exception: what `function` raises.
        """
        if not self.count:
            for place, job in enumerate(jobs):
                yield place, function(job)
            return
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.count, mp_context=multiprocessing.get_context("spawn"), initializer=worker_process.start
            )
        try:
            futures = {self._pool.submit(function, job): place for place, job in enumerate(jobs)}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise TrainingFailed(
                "a worker process was killed from outside (often by the system, for want of memory: fewer workers need "
                "less, see --workers). What is finished is kept: run the same command again to continue."
            ) from None
