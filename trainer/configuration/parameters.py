"""What a configurable accepts: the parameters of a function or class, and whether a value fits one of them.

Only what an annotation says plainly is checked (numbers, text, flags, choices, containers of these, configurables of a
class); everything else is left to the configurable itself.
"""

import collections.abc
import dataclasses
import inspect
import types
import typing

from trainer.configuration.source import Macro, Reference, did_you_mean

MISSING = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A keyword argument of a configurable: its annotation and default, MISSING where there is none."""

    name: str
    annotation: object
    default: object


def parameters(configurable):
    """Returns {name: Parameter} of what can be given by keyword, and whether any other name is taken too."""
    signature = inspect.signature(configurable)
    annotated = configurable
    if inspect.isclass(configurable) and not dataclasses.is_dataclass(configurable):
        annotated = configurable.__init__
    try:
        hints = typing.get_type_hints(inspect.unwrap(annotated))
    except Exception:  # an annotation that cannot be evaluated here says nothing to check
        hints = {}
    known, takes_any = {}, False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            known[name] = Parameter(name, hints.get(name, MISSING), parameter.default)
    return known, takes_any


def shown_default(value):
    """Returns a default as one line of text that is the same in every process."""
    if value is MISSING:
        return "given by the program"
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    text = " ".join(repr(value).split())
    return f"a {type(value).__qualname__}" if " at 0x" in text else text


def problem(value, parameter, objects):
    """Returns what is wrong with giving `value` to `parameter`, as the end of a sentence; None if nothing plainly is.

    Args:
        value: the value with its macros expanded; References in place.
        parameter: the Parameter.
        objects: a function from the name of a configurable to the object.
    """
    annotation = parameter.annotation
    if annotation is MISSING:
        annotation = _implied_by_default(value, parameter.default)
    if _fits(value, annotation, objects):
        return None
    expected = f"must be {_described(annotation)}, got {value!r}."
    if isinstance(value, Reference) and not value.evaluate:
        made = dataclasses.replace(value, evaluate=True)
        return f"{expected} Write {made!r} to make one." if _fits(made, annotation, objects) else expected
    if isinstance(value, str) and _choices(annotation):
        return expected + did_you_mean(value, _choices(annotation))
    nearest = _converted(value, annotation)
    return expected if nearest is None else f"{expected} Write {nearest!r}."


def _implied_by_default(value, default):
    """Returns the kind that a default implies; only a number or a flag written as text goes plainly against one."""
    if isinstance(value, str) and isinstance(default, (bool, int, float)):
        kind = bool if isinstance(default, bool) else float
        if _converted(value, kind) is not None:
            return kind
    return MISSING


def _fits(value, annotation, objects):
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(value, Macro):  # only gin.REQUIRED is left of macros here, and it is reported elsewhere
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument, objects) for argument in arguments)
    if origin is typing.Annotated:
        return _fits(value, arguments[0], objects)
    if isinstance(value, Reference):
        return _reference_fits(value, annotation, objects)
    if origin is typing.Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if annotation is dict or origin in (dict, collections.abc.Mapping):
        return isinstance(value, dict)
    if annotation in (list, tuple):
        return isinstance(value, (list, tuple))
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        return isinstance(value, (list, tuple)) and _items_fit(value, arguments, objects)
    return not dataclasses.is_dataclass(annotation)


def _items_fit(values, arguments, objects):
    arguments = [argument for argument in arguments if argument is not Ellipsis]
    if len(arguments) == 1:
        return all(_fits(value, arguments[0], objects) for value in values)
    return not arguments or len(arguments) == len(values)


def _reference_fits(reference, annotation, objects):
    plain = annotation in (int, float, str, bool, None, type(None)) or typing.get_origin(annotation) is typing.Literal
    configurable = objects(reference.name)
    if not reference.evaluate:
        return not plain and not dataclasses.is_dataclass(annotation)
    if not inspect.isclass(configurable):
        return True  # what a function returns is not known before it is called
    return not plain and (not dataclasses.is_dataclass(annotation) or issubclass(configurable, annotation))


def _choices(annotation):
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return [choice for argument in typing.get_args(annotation) for choice in _choices(argument)]


def _converted(value, annotation):
    """Returns the value of the right type that was probably meant, or None."""
    kinds = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else [annotation]
    )
    for kind in kinds:
        try:
            if kind is int and not isinstance(value, bool) and float(value) == int(float(value)):
                return int(float(value))
            if kind is float and isinstance(value, str):
                return int(value) if value.strip().isdigit() else float(value)
            if kind is str and isinstance(value, (int, float)):
                return str(value)
            if kind is bool and (value in ("True", "true", "False", "false") or value in (0, 1)):
                return value in ("True", "true", 1)
        except (TypeError, ValueError, OverflowError):
            continue
    return None


_NAMES = {int: "a whole number", float: "a number", str: "text in quotes", bool: "True or False", type(None): "None"}


def _described(annotation):
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        arguments = [argument for argument in arguments if argument is not Ellipsis]
        items = f" of items, each {_described(arguments[0])}" if len(arguments) == 1 else f" of {len(arguments)} items"
        return f"a list{items}"
    if annotation in (list, tuple):
        return "a list"
    if annotation is dict or origin in (dict, collections.abc.Mapping):
        return "a dictionary"
    if dataclasses.is_dataclass(annotation):
        return f"a configurable that makes {annotation.__name__}, @name()"
    return getattr(annotation, "__name__", str(annotation))
