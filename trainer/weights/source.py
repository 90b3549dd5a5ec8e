"""Weights by our names, wherever they come from."""

import abc
import dataclasses

import numpy as np

from trainer.errors import InputError
from trainer.models.encoder import padded_vocabulary_size
from trainer.weights.description import ModelDescription

TOKEN_ROWS = ("encoder/embeddings/word_embeddings/embeddings", "masked_language_model/output_bias")
POSITION_ROWS = ("encoder/embeddings/position_embeddings/embeddings",)


def rows_of(name):
    """Returns what the rows of our tensor of a name are: `tokens`, `positions`, or None for neither."""
    if name in POSITION_ROWS:
        return "positions"
    return "tokens" if name in TOKEN_ROWS else None


class Weights(abc.ABC):
    """Weights by our names, without padding; nothing is read before it is asked for.

    Attributes:
        kind: what they are, for people.
        path: where they are.
        description: `ModelDescription`.
        names: our names of the tensors there are.
        unknown: names elsewhere of tensors that belong to nothing we know.
        ignored: names elsewhere of tensors that say nothing about the model, such as an optimizer's.
    """

    kind: str
    path: str
    description: ModelDescription
    names: tuple
    unknown: tuple = ()
    ignored: tuple = ()

    @abc.abstractmethod
    def origin(self, name):
        """Returns the names elsewhere of one of our tensors, for people."""

    @abc.abstractmethod
    def shape(self, name):
        """Returns the shape of one of our tensors."""

    @abc.abstractmethod
    def read(self, name):
        """Returns one of our tensors as a NumPy array; it may share memory with a file."""

    def read_padded(self, name):
        """Returns one of our tensors with the rows of padding, zeros, that models here have."""
        array = self.read(name)
        if rows_of(name) != "tokens":
            return array
        missing = padded_vocabulary_size(self.description.vocabulary_size) - array.shape[0]
        return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])


@dataclasses.dataclass(frozen=True)
class WeightSource(Weights):
    """Weights in files.

    Attributes:
        kind: what they are, for people.
        path: where they are.
        description: `ModelDescription`.
        entries: `{our name: Entry}` of the tensors it holds.
        tensors: the `Tensors` that entries read from.
        unknown, ignored: names of the other tensors in the files, see `Weights`.
    """

    kind: str
    path: str
    description: ModelDescription
    entries: dict
    tensors: object
    unknown: tuple = ()
    ignored: tuple = ()

    @property
    def names(self):
        """Our names of the tensors it holds."""
        return tuple(self.entries)

    def origin(self, name):
        """See `Weights.origin`."""
        return ", ".join(part.name for part in self.entries[name].parts)

    def shape(self, name):
        """See `Weights.shape`."""
        entry = self.entries[name]
        shape = entry.shape(self.tensors.shapes)
        if shape is None:
            raise InputError(f"{self.path}: the shapes of {self.origin(name)} do not go together")
        if entry.rows == "tokens" and shape[0] == padded_vocabulary_size(self.description.vocabulary_size):
            shape = (self.description.vocabulary_size, *shape[1:])
        return shape

    def read(self, name):
        """See `Weights.read`."""
        return self.entries[name].read(self.tensors)[: self.shape(name)[0]]
