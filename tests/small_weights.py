"""Weights in memory and models of ours to load them into: tiny, every number another."""

import numpy as np

from trainer.models.architecture import EncoderConfig
from trainer.models.encoder_with_heads import EncoderWithHeads
from trainer.weights.description import ModelDescription
from trainer.weights.entries import Entry, Part
from trainer.weights.source import WeightSource, rows_of
from trainer.weights.tensors import Tensors

CONFIG = EncoderConfig(
    hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_length=20, dropout=0.0, attention_dropout=0.0
)
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "un", "##able", "##s", "mat", ".")
HEADS = ("masked_language_model", "pooler", "sentence_pair")


class ArraysInMemory(Tensors):
    """Arrays by name; counts how often each is read."""

    def __init__(self, arrays):
        self.arrays, self.reads = arrays, dict.fromkeys(arrays, 0)
        self.shapes = {name: array.shape for name, array in arrays.items()}

    def read(self, name):
        self.reads[name] += 1
        return self.arrays[name]


def small_model(config=CONFIG, vocabulary_size=None, heads=HEADS, **options):
    """Returns a built `EncoderWithHeads`; for the tokens of `PIECES` if nobody says how many."""
    model = EncoderWithHeads(config, vocabulary_size or len(PIECES), heads, **options)
    model.build()
    return model


def variables_of(model):
    """Returns `{our name: variable}` of a model, its name left out."""
    return {variable.path.partition("/")[2]: variable for variable in model.trainable_variables}


def values_of(model):
    """Returns `{our name: array}` of a model's present weights."""
    return {name: np.array(variable) for name, variable in variables_of(model).items()}


def small_source(config=CONFIG, pieces=PIECES, heads=HEADS, seed=0, **fields):
    """Returns a `WeightSource` with random numbers for a model, without padding."""
    rng = np.random.default_rng(seed)
    arrays = {}
    model = small_model(config, len(pieces), heads, labels=fields.get("labels", ()))
    for name, variable in variables_of(model).items():
        shape = (len(pieces), *variable.shape[1:]) if rows_of(name) == "tokens" else tuple(variable.shape)
        arrays[name] = rng.normal(size=shape).astype(np.float32)
    entries = {name: Entry(name, (Part(name),), rows_of(name)) for name in arrays}
    description = ModelDescription(
        encoder=config, vocabulary_size=len(pieces), pieces=pieces, lower_case=True, **fields
    )
    return WeightSource("arrays", "memory", description, entries, ArraysInMemory(arrays))
