"""What all trials of a sweep have in common, written down so that it cannot change unnoticed while the sweep goes on."""

import difflib
import os
import re

from launch.run_files import is_remote, read_text
from launch.sweep.values import canonical, split_assignment

# These decide where and how a run runs, not what it computes: a sweep may go on elsewhere.
FREE_PARAMETERS = frozenset({"strategy", "devices", "microbatch"})
_INCLUDE = re.compile(r"""^\s*include\s+(?:'([^']+)'|"([^"]+)")""", re.MULTILINE)
_SHOWN_LINES = 20
_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Where the shipped gin files lie: in the repository, or in the installed package.
_SHIPPED = (os.path.join(_FOLDER, "gin"), os.path.join(_FOLDER, "trainer", "gin_files"))


def describe(gin, gin_param):
    """Returns the common configuration as a dict that JSON can hold.

    Args:
        gin: names of gin files.
        gin_param: texts `name=value`.

    Raises:
        ValueError: if a gin file is not there, or a parameter is no assignment.
    """
    files = {}
    for name in gin:
        _collect(name, files)
    return {"gin": list(gin), "parameters": dict(map(split_assignment, gin_param)), "files": files}


def differences(before, now):
    """Returns lines that say in what two configurations differ; none if they compute the same.

    Comments in gin files do not count, nor do `FREE_PARAMETERS`.
    """
    lines = []
    if before["gin"] != now["gin"]:
        lines.append(f"--gin: was {' '.join(before['gin'])}, is {' '.join(now['gin'])}")
    old, new = before["parameters"], now["parameters"]
    for name in sorted((old.keys() | new.keys()) - FREE_PARAMETERS):
        if _same_value(old.get(name)) != _same_value(new.get(name)):
            lines.append(f"--gin_param {name}: was {old.get(name, 'not given')}, is {new.get(name, 'not given')}")
    for name in sorted(before["files"].keys() & now["files"].keys()):
        changed = difflib.unified_diff(before["files"][name], now["files"][name], lineterm="", n=0)
        changed = [line for line in list(changed)[2:] if not line.startswith("@@")]
        if changed:
            lines.append(f"{name} has changed:")
            lines += [f"    {line}" for line in changed[:_SHOWN_LINES]]
            if len(changed) > _SHOWN_LINES:
                lines.append(f"    and {len(changed) - _SHOWN_LINES} lines more")
    return lines


def _same_value(text):
    if text is None:
        return None
    try:
        return canonical(text)
    except ValueError:  # the trainer will say what is wrong with it
        return text


def _collect(name, files):
    """Adds the lines of a gin file, and of those that it includes, to `{name: lines}`."""
    if name in files:
        return
    text = _text_of(name)
    files[name] = [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for single, double in _INCLUDE.findall(text):
        _collect(single or double, files)


def _text_of(name):
    """Returns the text of a gin file, found as the trainer finds it: from the working directory, then of those shipped."""
    if is_remote(name):
        text = read_text(name)
        if text is None:
            raise ValueError(f"cannot read the gin file {name}")
        return text
    for folder in ("", *_SHIPPED):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
    shipped = [
        os.path.relpath(os.path.join(where, file), folder)
        for folder in _SHIPPED
        for where, _, names in os.walk(folder)
        for file in names
        if file.endswith(".gin")
    ]
    near = difflib.get_close_matches(name, shipped, n=1)
    raise ValueError(f"there is no gin file {name}{f'; did you mean {near[0]}?' if near else ''}")
