"""Loading weights into a model, and telling of every tensor what became of it."""

import collections
import dataclasses
import math
import os
import re
from concurrent import futures

import numpy as np
import tensorflow as tf

from trainer.errors import InputError
from trainer.models.encoder import padded_vocabulary_size
from trainer.weights.description import differing_fields, nameless_labels
from trainer.weights.source import rows_of
from trainer.weights.surgery import unshare_layers

# What may differ between a model and the weights it starts from: it changes no meaning of any tensor, or their shapes tell.
_MAY_DIFFER = {
    "dropout",
    "attention_dropout",
    "max_length",
    "type_vocabulary_size",
    "hierarchical_alpha",
    "attention",
    "confine_attention",
    "condition_size",
    "condition_hidden_size",
    "prediction_transform",
    "prediction_bias",
    "initializer_range",
    "rematerialize",
    "padding_id",
    "pooler_activation",  # see `check_heads`
}
_TRAINED_FOR = ("objective", "pooling")  # fields of a classifier
_MOST_PROBLEMS = 20  # that are told
# Threads that read and lay out tensors; more than a few do not help, since memory is what they wait for.
_READERS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every tensor.

    Attributes:
        kind, path: of the source.
        loaded: `{our name: names there}`.
        padded: our names of those that were filled up with rows of zeros to a multiple of what matrix units like.
        missing: our names of tensors that the source lacks; they keep their initial values.
        unused: names of tensors that the model has no place for.
        ignored: names of tensors that say nothing about a model, such as an optimizer's.
        parameters: numbers loaded.
    """

    kind: str
    path: str
    loaded: dict
    padded: tuple
    missing: tuple
    unused: tuple
    ignored: tuple
    parameters: int

    def summary(self):
        """Returns the report in a few words, with all names of what is not as one may think."""
        text = f"{self.path} ({self.kind}): {len(self.loaded)} tensors, {self.parameters:,} numbers"
        if self.missing:
            text += f"; initialized anew: {', '.join(self.missing)}"
        if self.unused:
            text += f"; not used: {', '.join(self.unused)}"
        return text

    def lines(self):
        """Returns a line for each tensor."""
        for ours, theirs in self.loaded.items():
            yield f"loaded   {ours} <- {theirs}" + (" (padded)" if ours in self.padded else "")
        for name in self.missing:
            yield f"missing  {name} (initialized anew)"
        for name in self.unused:
            yield f"unused   {name}"
        for name in self.ignored:
            yield f"ignored  {name}"


def not_allowed(names, patterns, option):
    """Returns the names that no pattern allows.

    Args:
        names: list of texts.
        patterns: regular expressions, looked for in the names.
        option: what a person calls them.

    Raises:
        InputError: if a pattern is none, or matches nothing.
    """
    for pattern in patterns:
        try:
            if not any(re.search(pattern, name) for name in names):
                raise InputError(
                    f"{option}: {pattern!r} matches nothing; there is {', '.join(names) or 'nothing to allow'}"
                )
        except re.error as error:
            raise InputError(f"{option}: {pattern!r} is not a regular expression: {error}") from None
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]


def check_architecture(source, encoder):
    """Refuses weights whose numbers would mean something else in a model.

    Args:
        source: `Weights`.
        encoder: `EncoderConfig` of the model.

    Raises:
        InputError: with every field that differs.
    """
    different = differing_fields(encoder, source.description.encoder, _MAY_DIFFER)
    if not encoder.share_layers:
        different.pop("share_layers", None)  # one layer serves as all, see `load_weights`
    if "epsilon" in different and abs(encoder.epsilon - source.description.encoder.epsilon) < 1e-6:
        del different["epsilon"]
    if different:
        listed = "\n  ".join(f"encoder.{name} is {a!r}, in the weights {b!r}" for name, (a, b) in different.items())
        raise InputError(
            f"{source.path} ({source.kind}) is of another architecture:\n  {listed}\n"
            "Take the architecture from the weights: encoder configuration @pretrained_encoder()."
        )


def listed(problems):
    """Returns problems as text, a line each, not too many."""
    more = len(problems) - _MOST_PROBLEMS
    return "\n  ".join(problems[:_MOST_PROBLEMS]) + (f"\n  and {more} more" if more > 0 else "")


def check_heads(source, description, names):
    """Refuses heads that were trained for something else, as far as the weights know for what.

    Args:
        source: `Weights`.
        description: `ModelDescription` of the model.
        names: our names of the tensors that are to be loaded.

    Raises:
        InputError: with every difference, and the two ways out.
    """
    theirs = source.description
    heads = {name.partition("/")[0] for name in names}
    different = []
    if "pooler" in heads:
        values = (description.encoder.pooler_activation, theirs.encoder.pooler_activation)
        different.append(("pooler", "encoder.pooler_activation", *values))
    if "classifier" in heads:
        named = theirs.objective != "regression" and theirs.labels != nameless_labels(len(theirs.labels))
        different.append(("classifier", "class_names", description.labels, theirs.labels if named else None))
        different += [("classifier", name, getattr(description, name), getattr(theirs, name)) for name in _TRAINED_FOR]
    different = [each for each in different if each[3] and each[2] != each[3]]
    if different:
        lines = "\n  ".join(f"{name} is {ours!r}, in the weights {known!r}" for _, name, ours, known in different)
        patterns = [f"{head}/" for head in dict.fromkeys(head for head, *_ in different)]
        raise InputError(
            f"heads of {source.path} ({source.kind}) were trained for something else:\n  {lines}\n"
            f"Set them alike, or begin with new heads: run.reinitialize = {patterns}"
        )


def check_vocabulary(source, pieces):
    """Refuses weights that were trained with another vocabulary.

    Args:
        source: `Weights`.
        pieces: the pieces of the vocabulary that texts are tokenized with.

    Raises:
        InputError: naming the first difference.
    """
    theirs = source.description.pieces
    advice = "Prepare the data with its vocabulary, or change the weights with `python -m tools.convert_weights`."
    if theirs is None:
        if len(pieces) != source.description.vocabulary_size:
            raise InputError(
                f"{source.path} was trained with {source.description.vocabulary_size:,} tokens, the vocabulary of the data "
                f"has {len(pieces):,}. {advice}"
            )
        return
    if tuple(pieces) == theirs:
        return
    place = next(
        (i for i, (a, b) in enumerate(zip(pieces, theirs, strict=False)) if a != b), min(len(pieces), len(theirs))
    )
    shown = [repr(each[place]) if place < len(each) else "nothing" for each in (pieces, theirs)]
    raise InputError(
        f"{source.path} was trained with another vocabulary: id {place} is {shown[0]} in the data ({len(pieces):,} pieces) "
        f"and {shown[1]} in the weights ({len(theirs):,}), so they mean other tokens. {advice}"
    )


def check_same_vocabulary(source, description):
    """Refuses weights that were trained with another vocabulary than that of a model, as far as either is known.

    Args:
        source: `Weights`.
        description: `ModelDescription` of the model.

    Raises:
        InputError: naming the first difference.
    """
    if description.pieces is not None:
        check_vocabulary(source, description.pieces)
    elif source.description.vocabulary_size != description.vocabulary_size:
        raise InputError(
            f"{source.path} was trained with {source.description.vocabulary_size:,} tokens, the model has "
            f"{description.vocabulary_size:,}"
        )


def load_weights(source, variables, *, kept=(), allow_missing=(), allow_unused=()):
    """Reads weights into variables, a few tensors at a time; nothing is changed unless everything fits.

    Heads that the source lacks keep their initial values, and heads that the model lacks are not read; the report says
    so. Anything else that is missing or left over, also of a head that both have, is an error. A layer that all layers of
    the source share becomes each layer of a model that does not share them.

    Args:
        source: `Weights`.
        variables: `{our name: variable}`, names without the model's own.
        kept: our names of other variables of the model, which keep the values they have.
        allow_missing: regular expressions of our names that may be missing besides whole heads.
        allow_unused: regular expressions of their names that may be left over besides heads.

    Returns:
        `Report`.

    Raises:
        InputError: naming all that does not fit, before any variable is changed; or if bytes turn out to be damaged when
            they are read.
    """
    if source.description.encoder.share_layers and any(name.startswith("encoder/layer_1/") for name in variables):
        source = unshare_layers(source)
    missing = [name for name in variables if name not in source.names]
    parts = {name.partition("/")[0] for name in source.names} | {"encoder"}
    partly = [name for name in missing if name.partition("/")[0] in parts]
    refused = not_allowed(partly, allow_missing, "allow_missing_weights")
    left = [name for name in source.names if name not in variables and name not in kept]
    ours = {name.partition("/")[0] for name in variables} | {"encoder"}
    left_of_ours = [source.origin(name) for name in left if name.partition("/")[0] in ours]
    unexpected = not_allowed([*source.unknown, *left_of_ours], allow_unused, "allow_unused_weights")
    problems = [f"{name} is missing" for name in refused]
    problems += [f"{name} belongs to nothing in this model" for name in unexpected]
    wanted = [name for name in variables if name in source.names]
    shapes = {name: problem for name in wanted if (problem := _shape_problem(source, name, variables[name]))}
    if problems or shapes:
        advice = _advice(bool(problems), shapes)
        raise InputError(
            f"{source.path} ({source.kind}) does not fit the model:\n  {listed(problems + [*shapes.values()])}{advice}"
        )
    with futures.ThreadPoolExecutor(_READERS) as pool:
        for name, value in _ahead(pool, lambda name: _read_value(source, name), wanted):
            variables[name].assign(value)
    unused = [source.origin(name) for name in left] + list(source.unknown)
    return Report(
        source.kind,
        source.path,
        loaded={name: source.origin(name) for name in wanted},
        padded=tuple(name for name in wanted if source.shape(name) != tuple(variables[name].shape)),
        missing=tuple(missing),
        unused=tuple(unused),
        ignored=tuple(source.ignored),
        parameters=sum(math.prod(source.shape(name)) for name in wanted),
    )


def _advice(by_name, misshapen):
    """Returns what to do, a line each: about tensors that are not there or not used, and about those of another shape."""
    heads = dict.fromkeys(name.partition("/")[0] for name in misshapen)
    patterns = [f"{head}/" for head in heads if head != "encoder"]
    advice = ""
    if by_name:
        options = "allow_missing_weights, allow_unused_weights (regular expressions)"
        advice += f"\nAllow by name what may be missing or unused: {options}."
    if patterns:
        advice += f"\nBegin anew with what has another shape: run.reinitialize = {patterns}."
    return advice


def _read_value(source, name):
    """Returns one of our tensors as a float32 tensor on the CPU, with its padding."""
    with tf.device("CPU:0"):
        return tf.convert_to_tensor(source.read_padded(name).astype(np.float32, copy=False))


def _ahead(pool, function, arguments):
    """Yields (argument, result) in order, while threads work on the next few: never many results wait in memory."""
    waiting = collections.deque()
    for argument in arguments:
        waiting.append((argument, pool.submit(function, argument)))
        if len(waiting) > _READERS:
            first, future = waiting.popleft()
            yield first, future.result()
    for argument, future in waiting:
        yield argument, future.result()


def _shape_problem(source, name, variable):
    """Returns what is wrong with the shape of a tensor, or None."""
    theirs, ours = source.shape(name), tuple(variable.shape)
    rows = rows_of(name)
    expected = theirs
    if rows == "tokens":
        size = source.description.vocabulary_size
        if theirs[:1] != (size,):
            return f"{name} has shape {theirs} for the {size:,} tokens of the weights"
        expected = (padded_vocabulary_size(size), *theirs[1:])
    if expected == ours:
        return None
    if rows == "positions" and theirs[1:] == ours[1:]:
        hint = "set encoder.max_length to that, or extend positions with `python -m tools.convert_weights`"
        return f"{name} has {theirs[0]:,} positions in the weights and {ours[0]:,} in the model: {hint}"
    return f"{name} has shape {theirs} in the weights and {ours} in the model"
