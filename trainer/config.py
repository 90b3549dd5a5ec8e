"""The configuration of a run: from gin files and `--gin_param` to checked arguments of functions and dataclasses.

Everything that a person can get wrong is found before the run starts, with the place where it was written. The
resolved configuration is one text: Gin parses that text, `config.gin` in the run directory is that text, and two runs
are compared by it. The rest of the library knows nothing of Gin.
"""

import copy
import fnmatch
import hashlib
import inspect
import json
import re

import gin

from trainer.configuration import source
from trainer.configuration.bindings import Bindings, collect, scope_parts
from trainer.configuration.checks import check
from trainer.configuration.parameters import MISSING, shown_default
from trainer.configuration.registry import Registry
from trainer.configuration.source import Binding, Import, Macro, Reference, literal, mapped
from trainer.errors import InputError

_DEFAULT_LINE = re.compile(r"^# (\S+\.\w+) = (.*?) +# default$")


def load_config(gin_files, gin_params=(), *, configurables, roots=("run",), search_folders=None):
    """Reads, checks and resolves a configuration, and gives it to Gin.

    Args:
        gin_files: names of gin files; a later one overrides an earlier one. Each is looked for in the search folders.
        gin_params: texts `name=value` from the command line, which override the files; the last one wins.
        configurables: {gin name: function, class, or 'module:attribute'}. Modules are imported only if the
            configuration names them.
        roots: the names of the configurables that the program itself calls; others are used where something refers to
            them.
        search_folders: where gin files are looked for; by default the working directory, then the shipped `gin/`.

    Returns:
        A ResolvedConfig.

    Raises:
        InputError: for a missing file, a syntax error, a misspelt or undefined name, a macro that nothing refers to, a
            value of the wrong kind, or a required value that is not set. The message says where, and what to do.
    """
    folders = ["", source.packaged_folder()] if search_folders is None else [str(folder) for folder in search_folders]
    statements = []
    for name in gin_files:
        statements += source.scan_file(str(name), folders)
    for text in gin_params:
        statements += source.scan_parameter(text, folders)
    gin.clear_config()
    imports = {statement.statement: statement for statement in statements if isinstance(statement, Import)}
    registry = Registry(configurables, list(imports.values()))
    bindings = Bindings(*collect(statements, registry), registry, roots)
    check(statements, bindings)
    resolved = ResolvedConfig(bindings, list(imports.values()))
    for name, _ in bindings.used:
        registry.register(name)
    try:
        gin.parse_config(resolved.text)
    except (ValueError, KeyError) as error:  # only possible with what the user's own modules registered
        raise InputError(f"gin refuses the resolved configuration: {error}") from error
    return resolved


class ResolvedConfig:
    """A checked configuration; made by `load_config`."""

    def __init__(self, bindings, imports):
        self._bindings = bindings
        self._registry = bindings.registry
        self._imports = imports

    @property
    def unused(self):
        """Bindings and macros that nothing in this run refers to, each as `key (where)`."""
        return [f"{binding.key} ({binding.origin})" for binding in self._bindings.without_effect()]

    def value(self, key):
        """Returns the value of `name.parameter` with macros expanded: what is bound, else the default.

        Raises:
            KeyError: if there is neither.
        """
        binding, parameter = self._find(key)
        if binding is not None:
            return self._bindings.expanded(binding.value)
        if parameter is None or parameter.default is MISSING:
            raise KeyError(key)
        return parameter.default

    def origin(self, key):
        """Returns where the value of `name.parameter` was written, for messages: `gin/pretrain.gin:12` or `default`."""
        binding, _ = self._find(key)
        return "default" if binding is None else "; ".join(self._bindings.places(binding))

    def _find(self, key):
        scoped_name, _, parameter = key.rpartition(".")
        scope, _, name = scoped_name.rpartition("/")
        name = self._registry.canonical(name)
        if name is None:
            raise KeyError(key)
        binding = self._bindings.effective(name, scope_parts(scope)).get(parameter)
        return binding, self._registry.parameters(name)[0].get(parameter)

    def arguments(self, name):
        """Returns {parameter: object} for a configurable: what is bound, with every `@name()` in it called.

        Raises:
            InputError: if a configurable refuses its arguments (ValueError, TypeError); says where they were set.
        """
        return self._arguments(self._registry.canonical(name), (), ())

    def call(self, name, **given):
        """Calls a configurable with what is bound and what the program gives.

        Raises:
            InputError: as `arguments`; also if something given is bound too, since the bound value would be ignored,
                and if a class refuses its arguments. What a function raises is left as it is: its work may fail.
        """
        name = self._registry.canonical(name)
        for parameter, binding in self._bindings.effective(name, ()).items():
            if parameter in given:
                raise InputError(f"{binding.origin}: {binding.key} is set by the program itself. Remove the line.")
        configurable, arguments = self._registry.object(name), {**self.arguments(name), **given}
        return self._made(name, (), arguments) if inspect.isclass(configurable) else configurable(**arguments)

    def _arguments(self, name, scope, calling):
        effective = self._bindings.effective(name, scope)
        return {parameter: self._evaluated(binding.value, scope, calling) for parameter, binding in effective.items()}

    def _evaluated(self, value, scope, calling):
        def evaluated(leaf):
            if self._bindings.is_defined(leaf):
                return self._evaluated(self._bindings.macros[leaf.name].value, scope_parts(leaf.name), calling)
            if not isinstance(leaf, Reference):
                return copy.deepcopy(leaf)
            if not leaf.evaluate:
                return self._registry.in_gin(leaf.name, leaf.scope)
            inner = leaf.scope or scope
            if (leaf.name, inner) in calling:
                raise InputError(f"{leaf!r} needs itself to be made, through {', '.join(name for name, _ in calling)}.")
            arguments = self._arguments(leaf.name, inner, (*calling, (leaf.name, inner)))
            return self._made(leaf.name, inner, arguments)

        return mapped(value, evaluated)

    def _made(self, name, scope, arguments):
        try:
            return self._registry.object(name)(**arguments)
        except (ValueError, TypeError, InputError) as error:
            raise InputError(self._refusal(name, scope, error)) from error

    def _refusal(self, name, scope, error):
        """Says that a configurable refused its arguments, and where those that the message names were set."""
        effective = self._bindings.effective(name, scope).values()
        named = [binding for binding in effective if re.search(rf"\b{binding.parameter}\b", str(error))]
        lines = [f"{name}: {error}"]
        for binding in named or effective:
            value, places = literal(self._bindings.expanded(binding.value)), "; ".join(self._bindings.places(binding))
            lines.append(f"  {binding.key} = {value}  ({places})")
        return "\n".join(lines)

    @property
    def text(self):
        """All of it as a gin file that resolves to the same; behind each value where it came from."""
        lines = [
            "# The resolved configuration of a run; a gin file of its own. Behind each value: where it came from.",
            *(f"{statement.statement}  # {statement.origin.place}" for statement in self._imports),
        ]
        used = [binding for name, binding in self._bindings.macros.items() if name in self._bindings.used_macros]
        if used:
            lines += ["", "# Macros", *_aligned([(_line(binding), binding.origin.place) for binding in used])]
        for scope, name in self._bindings.sections():
            rows = self._rows(scope, name)
            if rows:
                lines += ["", f"# {'/'.join((*scope, name))}", *_aligned(rows)]
        dead = self._bindings.without_effect()
        if dead:
            lines += ["", "# Without effect: nothing in this run refers to these"]
            lines += _aligned([(f"# {_line(binding)}", binding.origin.place) for binding in dead])
        return "\n".join(lines) + "\n"

    def _rows(self, scope, name):
        """Returns [(line, where from)] for one configurable: all its parameters, or in a scope those that are bound."""
        bound = self._bindings.bindings.get(("/".join(scope), name), {})
        known, _ = self._registry.parameters(name)
        rows = []
        for parameter in [*known, *(parameter for parameter in bound if parameter not in known)]:
            if parameter in bound:
                rows.append((_line(bound[parameter]), bound[parameter].origin.place))
            elif not scope and known[parameter].default is MISSING:
                rows.append((f"# {name}.{parameter}: given by the program", ""))
            elif not scope:
                rows.append((f"# {name}.{parameter} = {shown_default(known[parameter].default)}", "default"))
        return rows

    def differences(self, other_text, free=()):
        """Compares the values of parameters with those of another resolved configuration.

        Args:
            other_text: the text of the other one, for example of the run directory's `config.gin`.
            free: names of parameters that may differ (`run.devices`, or patterns such as `run.log_*`).

        Returns:
            A list of `parameter: old -> new`, sorted; empty if both describe the same run. A parameter that only one of
            the two programs knows, at its default, is no difference.
        """
        old, new = _flattened(other_text), _flattened(self.text)
        lines = []
        for key in sorted({*old, *new}):
            before, after = old.get(key), new.get(key)
            if _is_free(key, free) or (before and after and before[0] == after[0]):
                continue
            if (before is None and after[1]) or (after is None and before[1]):
                continue
            lines.append(f"{key}: {before[0] if before else 'not set'} -> {after[0] if after else 'not set'}")
        return lines

    def fingerprint(self, free=()):
        """Returns 16 hexadecimal digits that are equal for equal values of all parameters that are not free."""
        values = {key: value for key, (value, _) in _flattened(self.text).items() if not _is_free(key, free)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _line(binding):
    return f"{binding.key} = {literal(binding.value)}"


def _aligned(rows):
    """Returns lines with their places as comments in one column, which a few long lines do not push away."""
    width = max([len(line) for line, _ in rows if len(line) <= 60], default=0)
    return [f"{line:<{width}}  # {place}" if place else line for line, place in rows]


def _flattened(text):
    """Returns {parameter: (its value as text with macros expanded, whether it is a default)} of a resolved text."""
    macros, values = {}, {}
    for line in text.splitlines():
        match = _DEFAULT_LINE.match(line)
        if match:
            values[match[1]] = (_canonical_default(match[2]), True)
    statements = [statement for statement in source.scan_text(text, "config.gin") if isinstance(statement, Binding)]
    for statement in statements:
        if not statement.parameter:
            macros[statement.key] = statement.value

    def expanded(leaf):
        return mapped(macros[leaf.name], expanded) if isinstance(leaf, Macro) and leaf.name in macros else leaf

    for statement in statements:
        if statement.parameter:
            values[statement.key] = (_canonical(mapped(statement.value, expanded)), False)
    return values


def _canonical(value):
    """Returns a value as text, the same for what is equal in a run: 1 and 1.0, a list and a tuple."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_canonical(key)}: {_canonical(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_canonical, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return repr(value)


def _canonical_default(text):
    try:
        return _canonical(source.parse_value(text))
    except (SyntaxError, ValueError):  # a default that is no gin literal is compared as it is shown
        return text


def _is_free(key, free):
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in free)
