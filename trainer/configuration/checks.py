"""What must hold of a configuration before a run starts; each check reports all that is wrong, with its place."""

from trainer.configuration.bindings import raise_all, shown
from trainer.configuration.parameters import MISSING, problem
from trainer.configuration.source import REQUIRED, Macro, did_you_mean, leaves
from trainer.errors import InputError


def check(statements, bindings):
    """Checks macros, effect of the command line, required values and kinds of values.

    Args:
        statements: all statements as read, overridden ones too.
        bindings: the Bindings in force.

    Raises:
        InputError: with all that the first failing check found.
    """
    _check_macros(statements, bindings)
    _check_command_line(bindings)
    _check_required(bindings)
    _check_values(bindings)


def _check_macros(statements, bindings):
    """Every macro referred to is defined, every one defined is referred to somewhere, and none is made of itself."""
    macros, problems = bindings.macros, []
    read = [leaf for statement in statements for leaf in leaves(getattr(statement, "value", None))]
    # A reference in a line that another line overrides counts: it shows that the name is no misspelling.
    referred = [
        leaf.name for leaf in dict.fromkeys(leaf for leaf in read if isinstance(leaf, Macro)) if leaf != REQUIRED
    ]
    in_force = [binding for group in bindings.bindings.values() for binding in group.values()]
    for binding in [*in_force, *macros.values()]:
        for leaf in leaves(binding.value):
            if isinstance(leaf, Macro) and leaf.name not in macros and leaf != REQUIRED:
                hint = did_you_mean(leaf.name, macros) or f" Define it: {leaf.name} = ..."
                problems.append(f'{shown(binding.origin)}: there is no macro "{leaf.name}".{hint}')
    for name, binding in macros.items():
        if name not in referred:
            parameters = [other.key for other in in_force if other.parameter == name]
            hint = did_you_mean(name, referred)
            if not hint and parameters:
                hint = f" Did you mean {' or '.join(parameters)}?"
            elif not hint and referred:
                hint = f" There are {', '.join(sorted(referred))}."
            problems.append(f'{shown(binding.origin)}: nothing refers to a macro "{name}".{hint}')
        elif _is_circular(name, macros):
            problems.append(f'{shown(binding.origin)}: the macro "{name}" is defined by itself.')
    raise_all(problems)


def _is_circular(name, macros):
    seen, queue = set(), [name]
    while queue:
        for leaf in leaves(macros[queue.pop()].value):
            if isinstance(leaf, Macro) and leaf.name == name:
                return True
            if isinstance(leaf, Macro) and leaf.name in macros and leaf.name not in seen:
                seen.add(leaf.name)
                queue.append(leaf.name)
    return False


def _check_command_line(bindings):
    """What a person sets on the command line must change something: silence would be taken for success."""
    problems = []
    for binding in bindings.without_effect():
        if binding.origin.place != "--gin_param":
            continue
        if binding.parameter:
            used = ", ".join(dict.fromkeys("/".join((*scope, name)) for name, scope in bindings.used))
            reason = f'this run does not use "{binding.key.rpartition(".")[0]}". It uses {used}.'
        else:
            reason = "what refers to it is not used by this run, or set to something else."
        problems.append(f"{binding.origin} has no effect: {reason}")
    raise_all(problems)


def _check_required(bindings):
    """Everything that must be chosen is chosen."""
    missing = []
    for name in bindings.used_macros:
        binding = bindings.macros[name]
        if REQUIRED in leaves(binding.value):
            missing.append(_choice(binding, _annotation_behind(name, bindings)))
    for name, scope in bindings.used:
        known, _ = bindings.registry.parameters(name)
        for binding in bindings.effective(name, scope).values():
            if REQUIRED in leaves(binding.value):
                missing.append(_choice(binding, getattr(known.get(binding.parameter), "annotation", None)))
    for name, scope, referrer in _made(bindings):
        known, _ = bindings.registry.parameters(name)
        for parameter in known.values():
            if parameter.default is MISSING and parameter.name not in bindings.effective(name, scope):
                key = f"{name}.{parameter.name}"
                reason = f"{name} cannot be made without it ({referrer.origin}: {referrer.key})"
                missing.append(f"{key}: {reason}\n    {_example(key, parameter.annotation)}")
    missing = list(dict.fromkeys(missing))
    if missing:
        head = "A value must be chosen" if len(missing) == 1 else f"{len(missing)} values must be chosen"
        raise InputError(f"{head} before this run can start:\n" + "\n".join(f"  {text}" for text in missing))


def _made(bindings):
    """Yields (name, scope, the Binding that refers to it) for every configurable in use that is called as `@name()`."""
    for name, scope in bindings.used:
        for binding in bindings.effective(name, scope).values():
            for reference, inner in bindings.references(binding.value, scope, {}):
                if reference.evaluate:
                    yield reference.name, inner, binding


def _annotation_behind(macro, bindings):
    """Returns the annotation of a parameter that is set to just this macro, None if there is none."""
    for (_, name), group in bindings.bindings.items():
        for binding in group.values():
            if binding.value == Macro(macro):
                return getattr(bindings.registry.parameters(name)[0].get(binding.parameter), "annotation", None)
    return None


def _choice(binding, annotation):
    comment = f": {binding.origin.comment}" if binding.origin.comment else ""
    return f"{binding.key} ({binding.origin}){comment}\n    {_example(binding.key, annotation)}"


def _example(key, annotation):
    for kind, example in ((int, "1000"), (float, "0.1"), (bool, "True")):
        if annotation is kind:
            return f"--gin_param '{key}={example}'"
    return f"--gin_param '{key}=\"...\"'"


def _check_values(bindings):
    """Every bound value is of a kind that its parameter plainly accepts."""
    problems = []
    for name, scope in bindings.used:
        known, _ = bindings.registry.parameters(name)
        for parameter, binding in bindings.effective(name, scope).items():
            if parameter in known:
                wrong = problem(bindings.expanded(binding.value), known[parameter], bindings.registry.object)
                if wrong:
                    problems.append(f"{'; '.join(bindings.places(binding))}: {binding.key} {wrong}")
    raise_all(problems)
