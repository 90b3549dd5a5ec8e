"""The configurables that a configuration may name: the program's own, and what imported modules registered."""

import importlib

import gin

from trainer.configuration.parameters import parameters
from trainer.errors import InputError

_MODULE = "trainer"  # what Gin sees in front of the names of our own configurables
_registered = set()  # names that this process has registered with Gin so far


class Registry:
    """Finds configurables by the names that gin files use, importing and registering only what is asked for.

    Args:
        table: {gin name: function, class, or 'module:attribute'}.
        imports: the Import statements of the configuration; these modules are imported now.

    Raises:
        InputError: if there is no such module.
    """

    def __init__(self, table, imports=()):
        self._table = table
        self._objects = {}
        self._parameters = {}
        self._has_imports = bool(imports)
        for statement in imports:
            _import(statement)

    def names(self):
        """Returns the names in the program's table."""
        return list(self._table)

    def canonical(self, name):
        """Returns the table's name for `run`, `trainer.run` or the end of a dotted name; None if it is unknown."""
        short = name.removeprefix(f"{_MODULE}.")
        if short in self._table:
            return short
        ends = [known for known in self._table if known.endswith(f".{short}")]
        if len(ends) == 1:
            return ends[0]
        if self._has_imports and short not in _registered:
            try:
                gin.get_configurable(name)
                return name
            except (ValueError, KeyError):
                pass
        return None

    def is_ours(self, name):
        """Returns whether the name is the program's own, rather than one that an imported module registered."""
        return name in self._table

    def object(self, name):
        """Returns the function or class itself, imported if the table has it as 'module:attribute'."""
        if name not in self._objects:
            entry = self._table[name] if self.is_ours(name) else gin.get_configurable(name)
            if isinstance(entry, str):
                module, _, attribute = entry.partition(":")
                entry = getattr(importlib.import_module(module), attribute)
            self._objects[name] = entry
        return self._objects[name]

    def parameters(self, name):
        """Returns what `trainer.configuration.parameters.parameters` says of the configurable."""
        if name not in self._parameters:
            self._parameters[name] = parameters(self.object(name))
        return self._parameters[name]

    def register(self, name):
        """Makes the configurable known to Gin, in place of another that a former table had under that name."""
        if not self.is_ours(name):
            return
        gin.enter_interactive_mode()  # Gin's word for: a name may be registered again
        try:
            gin.external_configurable(self.object(name), name=name, module=_MODULE)
        finally:
            gin.exit_interactive_mode()
        _registered.add(name)

    def in_gin(self, name, scope):
        """Returns Gin's own version of the configurable, which fills in what is bound when it is called."""
        full_name = f"{_MODULE}.{name}" if self.is_ours(name) else name
        return gin.get_configurable("/".join((*scope, full_name)))


def _import(statement):
    if statement.module.startswith("__gin__"):
        raise InputError(f"{statement.origin}: dynamic registration is not supported; use @gin.configurable instead.")
    try:
        importlib.import_module(statement.module)
    except ModuleNotFoundError as error:
        missing = f"there is no module {error.name!r} on this Python's path"
        raise InputError(f"{statement.origin}: {statement.origin.line}: {missing}.") from error
