"""The trainer's lanes over one data set, wherever it lies."""

import time

from tools.benchmark.peers import protocol

_LANES = 64
_WARM_UP_SECONDS = 2.0


def prepare(settings):
    """See `protocol.serve`."""
    import os

    from trainer.environment import import_tensorflow_quietly

    import_tensorflow_quietly(os.environ)
    from trainer.data.corpora import Corpus
    from trainer.data.lanes import training_dataset
    from trainer.data.shard_cache import ShardCache

    corpus, batch = Corpus(settings["folder"]), settings["reader_batch"]
    if settings["cache"]:
        cache = ShardCache(settings["cache"], 1 << 40, lambda _: None)
        corpus = Corpus(corpus.folder, cached_in=cache.folder_for(corpus.folder, corpus.manifest))
        cache.start()
        cache.wait()

    def run(seconds):
        """Reads from a start of its own; returns rows a second."""
        options = {"start_step": 0, "global_batch": batch, "rows_per_element": batch}
        iterator = iter(training_dataset([corpus], seed=0, lanes=_LANES, **options))
        began = time.perf_counter()
        while time.perf_counter() - began < _WARM_UP_SECONDS:
            next(iterator)
        elements, began = 0, time.perf_counter()
        while elements == 0 or time.perf_counter() - began < seconds:
            next(iterator)
            elements += 1
        return {"rows_per_second": elements * batch / (time.perf_counter() - began)}

    return {}, {"run": run}


if __name__ == "__main__":
    protocol.serve(prepare)
