"""The weights of a model in memory, to be written in any format."""

import numpy as np

from trainer.weights.source import Weights, rows_of


class ModelWeights(Weights):
    """The weights of a model.

    Args:
        model: a built Keras layer, such as `Task.build_model` returns.
        description: its `ModelDescription`.
    """

    def __init__(self, model, description):
        self.kind, self.path, self.description = "model", model.name, description
        # Our names lack the model's own.
        self._variables = {variable.path.partition("/")[2]: variable for variable in model.trainable_variables}
        self.names = tuple(self._variables)

    def origin(self, name):
        """See `Weights.origin`."""
        return self._variables[name].path

    def shape(self, name):
        """See `Weights.shape`."""
        shape = tuple(self._variables[name].shape)
        return (self.description.vocabulary_size, *shape[1:]) if rows_of(name) == "tokens" else shape

    def read(self, name):
        """See `Weights.read`."""
        array = np.asarray(self._variables[name])
        return array[: self.description.vocabulary_size] if rows_of(name) == "tokens" else array
