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
        variable: the Keras variable; None where only the shape matters.
        layers_above: how many layers of depth lie between it and the top of the model; 0 for what has no depth.
        shape: tuple of integers.
    """

    name: str
    role: str
    variable: keras.Variable | None
    layers_above: int = 0
    shape: tuple = None

    def __post_init__(self):
        if self.shape is None:
            object.__setattr__(self, "shape", tuple(self.variable.shape))


def is_bias(name, shape):
    """Returns whether a variable is a bias: a vector, or called so, as the matrices of biases in Keras's attention are."""
    return len(shape) < 2 or name == "bias"


def parameters_of(model):
    """Returns the trainable parameters of a built model, in a fixed order.

    Args:
        model: a Keras layer or model.

    Returns:
        list of `Parameter`. A matrix of a layer that has an `embeddings` attribute is an embedding; whatever a
        normalisation owns (one of Keras's, or a layer with a true `is_normalization`) is normalization; a vector
        elsewhere, or what is called bias, is a bias. Layers with an integer attribute `depth` (embeddings 0, the first
        layer above them 1, ...) give it to the layers inside them.
    """
    roles, depths = {}, {}
    for layer in model._flatten_layers(include_self=True, recursive=True):
        depth = getattr(layer, "depth", None)
        if isinstance(depth, int):
            depths |= {id(variable): depth for variable in layer.trainable_variables}
        for variable in layer._trainable_variables:
            if isinstance(layer, _NORMALIZATIONS) or getattr(layer, "is_normalization", False):
                role = "normalization"
            elif variable is getattr(layer, "embeddings", None) or variable is getattr(layer, "_embeddings", None):
                role = "embedding"
            else:
                role = "bias" if is_bias(variable.name, variable.shape) else "kernel"
            roles[id(variable)] = role
    top = 1 + max(depths.values(), default=0)
    parameters = [Parameter(v.path, roles[id(v)], v, top - depths.get(id(v), top)) for v in model.trainable_variables]
    names = [parameter.name for parameter in parameters]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"parameters with the same name: {', '.join(twice)}")
    return parameters
