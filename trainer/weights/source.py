"""Weights by our names, wherever they come from."""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Weights that were found, by our names; nothing is read before it is asked for.

    Attributes:
        kind: what they are, for people.
        path: where they are.
        description: `ModelDescription`.
        entries: `{our name: Entry}` of the tensors it holds.
        tensors: the `Tensors` that entries read from.
        unknown: names of tensors that belong to nothing we know.
    """

    kind: str
    path: str
    description: ModelDescription
    entries: dict
    tensors: object
    unknown: tuple = ()

    @property
    def names(self):
        """Our names of the tensors it holds."""
        return tuple(self.entries)

    def origin(self, name):
        """Returns the names elsewhere of one of our tensors, for people."""
        return ", ".join(part.name for part in self.entries[name].parts)

    def shape(self, name):
        """Returns the shape of one of our tensors, without padding."""
        entry = self.entries[name]
        shape = entry.shape(self.tensors.shapes)
        if shape is None:
            raise InputError(f"{self.path}: the shapes of {self.origin(name)} do not go together")
        if entry.rows == "tokens" and shape[0] == padded_vocabulary_size(self.description.vocabulary_size):
            shape = (self.description.vocabulary_size, *shape[1:])
        return shape

    def read(self, name):
        """Returns one of our tensors as a NumPy array without padding; it may share memory with the file."""
        return self.entries[name].read(self.tensors)[: self.shape(name)[0]]
