"""Loading the same weights from files of several kinds, and reading the bytes of one."""

import dataclasses
import os
import tempfile
import time

import numpy as np

from tools.benchmark.peers import protocol

_PIECE_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True)
class _RandomTensors:
    """Random numbers under the names and shapes of a model's variables."""

    shapes: dict

    def read(self, name):
        """Returns float32 numbers."""
        generator = np.random.default_rng(len(name))
        return 0.02 * generator.standard_normal(self.shapes[name], dtype=np.float32)


def _build(settings):
    """Returns a model and its variables by our names."""
    from trainer.models.architecture import EncoderConfig
    from trainer.models.encoder_with_heads import EncoderWithHeads

    config = EncoderConfig(
        hidden_size=settings["hidden_size"],
        num_layers=settings["num_layers"],
        num_heads=settings["num_heads"],
        intermediate_size=settings["feed_forward_size"],
        max_length=settings["max_length"],
    )
    model = EncoderWithHeads(config, settings["vocabulary_size"], ["masked_language_model"])
    model.build()
    return model, {variable.path.partition("/")[2]: variable for variable in model.trainable_variables}


def _write(folder, model, variables):
    """Writes random weights for a model in every format; returns `{kind: path}` and the number of parameters."""
    from trainer.weights.description import ModelDescription
    from trainer.weights.entries import Entry, Part
    from trainer.weights.source import WeightSource, rows_of
    from trainer.weights.writing import write_weights

    def rows(name, variable):
        return model.vocabulary_size if rows_of(name) == "tokens" else variable.shape[0]

    shapes = {name: (rows(name, variable), *variable.shape[1:]) for name, variable in variables.items()}
    entries = {name: Entry(name, (Part(name),), rows_of(name)) for name in shapes}
    description = ModelDescription(encoder=model.config, vocabulary_size=model.vocabulary_size)
    source = WeightSource("random numbers", "memory", description, entries, _RandomTensors(shapes))
    paths = {kind: os.path.join(folder, kind) for kind in ("hugging_face", "tensorflow1", "checkpoint")}
    for kind, path in paths.items():
        write_weights(source, path, kind)
    return paths, sum(int(np.prod(shape)) for shape in shapes.values())


def _read_bytes(path):
    """Returns the bytes of a file, in pieces as large as tensors are."""
    places = range(0, os.path.getsize(path), _PIECE_BYTES)
    return [np.fromfile(path, np.uint8, _PIECE_BYTES, offset=first) for first in places]


def _forget(folder):
    """Asks the kernel to keep no pages of the files in a folder; returns whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def prepare(settings):
    """See `protocol.serve`."""
    import safetensors.numpy

    from trainer.weights.loading import load_weights
    from trainer.weights.opening import open_weights

    folder = tempfile.TemporaryDirectory(prefix="bert-trainer-benchmark-")
    model, variables = _build(settings)
    paths, parameters = _write(folder.name, model, variables)
    largest = os.path.join(paths["hugging_face"], "model.safetensors")

    def loading(path):
        return lambda: load_weights(open_weights(path), variables)

    ways = {
        "bytes": lambda: np.fromfile(largest, np.uint8),
        "safetensors": lambda: safetensors.numpy.load_file(largest),
    }
    ways |= {kind: loading(path) for kind, path in paths.items()}
    for way in ways.values():  # so that nobody pays for what is done only once
        way()

    def run(way, cold):
        if cold:
            _forget(folder.name)
        began, processor = time.perf_counter(), time.process_time()
        result = ways[way]()
        answer = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - processor}
        del result
        return answer

    run.folder = folder  # it lives as long as what refers to it
    information = {"parameters": parameters, "bytes": os.path.getsize(largest), "can_empty_cache": _forget(folder.name)}
    return information, {"run": run}


if __name__ == "__main__":
    protocol.serve(prepare)
