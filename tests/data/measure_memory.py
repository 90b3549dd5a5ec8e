"""Prepares a corpus and prints the peak memory of this process and of its worker process, in MB, as JSON.

    python measure_memory.py SETTINGS OUTPUT

SETTINGS are those of `PreparationSettings`, in JSON. Units have a megabyte here because the corpora are small; shards,
partitions and groups of spills are made as small in proportion to them as they are at full size.
"""

import json
import os
import resource
import sys

from trainer.environment import import_tensorflow_quietly

import_tensorflow_quietly(os.environ)

from trainer.data import merging, preparation  # noqa: E402 (TensorFlow has to be told before to be quiet)


def main(settings, output):
    """Prepares with one worker process."""
    preparation._SHARD_BYTES = preparation._PARTITION_TEXT_BYTES = 1 << 20
    merging._MOST_SPILLS = merging._GROUP_SPILLS = 4
    preparation.prepare(preparation.PreparationSettings(**settings), output, num_workers=1)
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
