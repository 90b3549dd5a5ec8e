"""What is bound to what, after all overriding: the bindings in force, and which of them a run uses."""

from trainer.configuration.source import Binding, Import, Macro, Reference, did_you_mean, leaves, mapped
from trainer.errors import InputError


def collect(statements, registry):
    """Lets later statements override earlier ones.

    Args:
        statements: Binding and Import in the order in which they were read.
        registry: the Registry.

    Returns:
        {(scope, name): {parameter: Binding}} with the registry's own names, and {macro: Binding}.

    Raises:
        InputError: naming every unknown configurable and parameter at once.
    """
    bindings, macros, problems = {}, {}, []
    for statement in statements:
        if isinstance(statement, Import):
            continue
        value = mapped(statement.value, lambda leaf, where=statement.origin: _known(leaf, where, registry, problems))
        if not statement.parameter:
            macros[statement.key] = Binding(statement.scope, statement.name, "", value, statement.origin)
            continue
        name = registry.canonical(statement.name)
        if name is None:
            problems.append(f"{shown(statement.origin)}: {_unknown(statement.name, registry)}")
            continue
        known, takes_any = registry.parameters(name)
        if statement.parameter not in known and not takes_any:
            hint = did_you_mean(statement.parameter, known) or f" It has {', '.join(known) or 'no parameters'}."
            problems.append(f'{shown(statement.origin)}: "{name}" has no parameter "{statement.parameter}".{hint}')
            continue
        binding = Binding(statement.scope, name, statement.parameter, value, statement.origin)
        bindings.setdefault((statement.scope, name), {})[statement.parameter] = binding
    raise_all(problems)
    return bindings, macros


def shown(origin):
    """Returns where a statement is, and its line where the place does not contain it."""
    return str(origin) if origin.place == "--gin_param" else f"{origin}: {origin.line}\n  "


def raise_all(problems):
    """Raises an InputError with all the problems, each on its own line, if there are any."""
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _known(leaf, origin, registry, problems):
    """Returns a reference under the registry's own name; notes a problem if there is no such configurable."""
    if not isinstance(leaf, Reference):
        return leaf
    name = registry.canonical(leaf.name)
    if name is None:
        problems.append(f"{shown(origin)}: {_unknown(leaf.name, registry)}")
        return leaf
    return Reference(leaf.scope, name, leaf.evaluate)


def _unknown(name, registry):
    hint = did_you_mean(name, registry.names()) or f" There are {', '.join(registry.names())}."
    return f'there is no configurable "{name}".{hint}'


def scope_parts(scope):
    """Returns `a/b` as ("a", "b")."""
    return tuple(scope.split("/")) if scope else ()


class Bindings:
    """The bindings in force and how they hang together, starting from the configurables that the program calls.

    Attributes:
        bindings: {(scope, name): {parameter: Binding}}.
        macros: {name: Binding}.
        registry: the Registry.
        used: [(name, scope)] of the configurables in use, in order of first use.
        used_macros: the names of the macros in use, in order of first use.
    """

    def __init__(self, bindings, macros, registry, roots):
        self.bindings = bindings
        self.macros = macros
        self.registry = registry
        self.used, self.used_macros = self._reached([root for root in map(registry.canonical, roots) if root])

    def _reached(self, roots):
        # What a module of the user's own registered may be called by that module, with no reference to it.
        foreign = [(name, scope_parts(scope)) for scope, name in self.bindings if not self.registry.is_ours(name)]
        queue = [(root, ()) for root in roots] + foreign
        used, macros = {}, {}
        while queue:
            name, scope = queue.pop(0)
            if (name, scope) in used:
                continue
            used[name, scope] = True
            for binding in self.effective(name, scope).values():
                queue += [(reference.name, inner) for reference, inner in self.references(binding.value, scope, macros)]
        return list(used), list(macros)

    def effective(self, name, scope):
        """Returns {parameter: Binding} for `name` in a scope: an inner scope's binding wins over an outer one's."""
        merged = {}
        for depth in range(len(scope) + 1):
            merged.update(self.bindings.get(("/".join(scope[:depth]), name), {}))
        return merged

    def references(self, value, scope, macros_seen):
        """Yields (Reference, the scope it is called in) in a value, through macros not yet seen, which it notes."""
        for leaf in leaves(value):
            if isinstance(leaf, Reference):
                yield leaf, leaf.scope or scope
            elif self.is_defined(leaf) and leaf.name not in macros_seen:
                macros_seen[leaf.name] = True
                # Gin evaluates the value of a macro in the scope of the macro's name.
                yield from self.references(self.macros[leaf.name].value, scope_parts(leaf.name), macros_seen)

    def is_defined(self, leaf):
        """Returns whether a leaf of a value is a macro that has a definition."""
        return isinstance(leaf, Macro) and leaf.name in self.macros

    def expanded(self, value):
        """Returns a value with macros replaced by what they stand for."""
        return mapped(
            value, lambda leaf: self.expanded(self.macros[leaf.name].value) if self.is_defined(leaf) else leaf
        )

    def sections(self):
        """Returns [(scope, name)] of the groups of bindings in use, in order of first use, outer scopes first."""
        return list(
            dict.fromkeys((scope[:depth], name) for name, scope in self.used for depth in range(len(scope) + 1))
        )

    def without_effect(self):
        """Returns the bindings and macro definitions that nothing in the run refers to."""
        in_use = set(self.sections())
        groups = [group for (scope, name), group in self.bindings.items() if (scope_parts(scope), name) not in in_use]
        macros = [binding for name, binding in self.macros.items() if name not in self.used_macros]
        return [binding for group in groups for binding in group.values()] + macros

    def places(self, binding):
        """Returns the places that a binding's value comes from: those of the macros in it, else its own."""
        macros = [leaf.name for leaf in leaves(binding.value) if self.is_defined(leaf)]
        if not macros:
            return [str(binding.origin)]
        return [place for name in macros for place in self.places(self.macros[name])]
