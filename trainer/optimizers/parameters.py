"""What an optimizer must know of a model's parameters: their names, and the role each plays.

Decisions such as "no weight decay on biases" are taken by role. Going by name is how exclusions go wrong: a pattern that
is case-sensitive or written for another library silently matches nothing.
"""

import dataclasses

import keras

ROLES = ("kernel", "bias", "normalization", "embedding")
_NORMALIZATIONS = (
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One trainable variable.

    Attributes:
        name: its path in the model, unique.
        role: one of `ROLES`.
        variable: the Keras variable.
    """

    name: str
    role: str
    variable: keras.Variable

    @property
    def shape(self):
        """Shape as a tuple of integers."""
        return tuple(self.variable.shape)


def parameters_of(model):
    """Returns the trainable parameters of a built model, in a fixed order.

    Args:
        model: a Keras layer or model.

    Returns:
        list of `Parameter`. A matrix of a layer that has an `embeddings` attribute is an embedding; whatever a
        normalisation owns is normalization; a vector elsewhere is a bias.
    """
    roles = {}
    for layer in model._flatten_layers(include_self=True, recursive=True):
        for variable in layer._trainable_variables:
            if isinstance(layer, _NORMALIZATIONS):
                role = "normalization"
            elif variable is getattr(layer, "embeddings", None) or variable is getattr(layer, "_embeddings", None):
                role = "embedding"
            else:
                role = "bias" if len(variable.shape) < 2 else "kernel"
            roles[id(variable)] = role
    parameters = [Parameter(v.path, roles[id(v)], v) for v in model.trainable_variables]
    names = [parameter.name for parameter in parameters]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"parameters with the same name: {', '.join(twice)}")
    return parameters
