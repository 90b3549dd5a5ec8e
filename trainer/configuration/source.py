"""Gin files as a person wrote them: finding them, and reading their statements with the place of each one.

Gin's own parser does the parsing; what is added here is where every value came from, so that messages and the resolved
configuration can say it. Nothing is bound in Gin's global state; `trainer.config` does that after checking everything.
"""

import contextlib
import dataclasses
import difflib
import glob
import io
import os
import shlex
import tokenize

from gin import config_parser

from trainer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a statement was written.

    Attributes:
        place: `gin/pretrain.gin:12`, or `--gin_param`.
        line: the whole line, stripped.
        comment: what the author wrote beside it, or in the comment lines right above it; may be empty.
    """

    place: str
    line: str
    comment: str = ""

    def __str__(self):
        if self.place == "--gin_param":
            return f"--gin_param {shlex.quote(self.line)}"
        return self.place


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/name` (the configurable itself) or `@scope/name()` (what it returns)."""

    scope: tuple
    name: str
    evaluate: bool

    def __repr__(self):
        return f"@{'/'.join((*self.scope, self.name))}{'()' if self.evaluate else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%name`: the value of a macro."""

    name: str

    def __repr__(self):
        return f"%{self.name}"


REQUIRED = Macro("gin.REQUIRED")


@dataclasses.dataclass(frozen=True)
class Binding:
    """`scope/name.parameter = value`; the definition of a macro has no parameter."""

    scope: str
    name: str
    parameter: str
    value: object
    origin: Origin

    @property
    def key(self):
        """The left side as a gin file has it, for example `train/encoder.num_layers`."""
        full_name = f"{self.scope}/{self.name}" if self.scope else self.name
        return f"{full_name}.{self.parameter}" if self.parameter else full_name


@dataclasses.dataclass(frozen=True)
class Import:
    """`import module`, which registers configurables of the user's own."""

    module: str
    statement: str
    origin: Origin


class _Values(config_parser.ParserDelegate):
    """Makes our own references and macros of what the parser meets, so that nothing need be registered yet."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        *scope, name = scoped_configurable_name.split("/")
        if name in ("macro", "gin.macro") and evaluate:
            return Macro("/".join(scope))
        return Reference(tuple(scope), name, evaluate)

    def macro(self, macro_name):
        return REQUIRED if macro_name in ("REQUIRED", "gin.REQUIRED") else Macro(macro_name)


def parse_value(text):
    """Returns the value that `text` stands for on the right side of a binding; raises SyntaxError."""
    return config_parser.ConfigParser(text, _Values()).parse_value()


def leaves(value):
    """Yields what a value is made of, inside lists, tuples and dictionaries."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def mapped(value, function):
    """Returns a value with `function` applied to each of its leaves."""
    if isinstance(value, dict):
        return {mapped(key, function): mapped(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, function) for item in value)
    return function(value)


def literal(value):
    """Returns a value as gin parses it on one line."""
    return repr(mapped(value, lambda leaf: _Verbatim(leaf) if isinstance(leaf, float) else leaf))


class _Verbatim(float):
    """A number as Gin reads it: Python literals have no infinity, but 1e999 is one."""

    def __repr__(self):
        return float.__repr__(self).replace("inf", "1e999")


def did_you_mean(word, allowed):
    """Returns ` Did you mean "x"?` for the nearest of the allowed words, or nothing if none is near."""
    near = difflib.get_close_matches(str(word), [str(choice) for choice in allowed], n=3)
    return f" Did you mean {' or '.join(map(_quoted, near))}?" if near else ""


def _quoted(word):
    return f'"{word}"'


def shown_path(path):
    """Returns a path relative to the working directory where it lies below it, else as it is."""
    if "://" in path:
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def packaged_folder():
    """Returns the folder of the shipped gin files: in the installed package, or beside it in the repository."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    installed = os.path.join(package, "gin_files")
    beside = os.path.join(os.path.dirname(package), "gin")
    # Beside an installed package lies gin-config's own folder of that name; that one has an `__init__.py`.
    is_ours = os.path.isdir(beside) and not os.path.exists(os.path.join(beside, "__init__.py"))
    return beside if is_ours and not os.path.isdir(installed) else installed


def find_file(name, folders, asked_by=None):
    """Finds a gin file by the name that a person gave.

    Args:
        name: a path, absolute or relative to one of the folders. A shipped file is found with and without `gin/`.
        folders: where to look, in order.
        asked_by: the Origin of the `include` that asks; the file's own folder is then looked into last.

    Returns:
        The path of the file.

    Raises:
        InputError: if there is none; the message has the nearest names and all the shipped files.
    """
    if "://" in name:
        return name
    expanded = os.path.expanduser(name)
    if asked_by is not None and asked_by.place != "--gin_param":
        folders = [*folders, os.path.dirname(asked_by.place.rsplit(":", 1)[0])]
    candidates = [os.path.join(folder, expanded) for folder in folders]
    if expanded.startswith("gin/"):
        candidates.append(os.path.join(packaged_folder(), expanded.removeprefix("gin/")))
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise InputError(_not_found(name, folders, asked_by))


def _not_found(name, folders, asked_by):
    shipped = packaged_folder()
    names = sorted(os.path.relpath(path, shipped) for path in glob.glob(f"{shipped}/**/*.gin", recursive=True))
    known = names + sorted(path for folder in folders for path in glob.glob("*.gin", root_dir=folder or "."))
    near = [path for path in known if _stem(path) == _stem(name)]
    hint = f" Did you mean {_quoted(near[0])}?" if near else did_you_mean(name, known)
    reason = f"{asked_by}: include" if asked_by is not None else "--gin"
    looked = ", ".join(shown_path(folder or ".") for folder in dict.fromkeys(folders))
    listing = "\n".join(f"  {path}" for path in names) or "  (none)"
    return f'{reason} "{name}": there is no such file in {looked}.{hint}\nShipped gin files:\n{listing}'


def _stem(path):
    return os.path.basename(path).removesuffix(".gin")


def scan_file(name, folders, asked_by=None, including=()):
    """Reads a gin file and all that it includes.

    Args:
        name: as in `find_file`.
        folders: where to look for it and for included files.
        asked_by: the Origin of the `include` that asks for it.
        including: the paths of the files that are being read around this one.

    Returns:
        A list of Binding and Import in the order in which they take effect.

    Raises:
        InputError: for a missing file, a syntax error or a file that includes itself.
    """
    path = find_file(name, folders, asked_by)
    identity = path if "://" in path else os.path.realpath(path)
    if identity in including:
        raise InputError(f'{asked_by}: "{name}" includes itself (through {" -> ".join(map(shown_path, including))}).')
    text = _read(path)
    return _scan(text, shown_path(path), folders, (*including, identity))


def scan_parameter(text, folders):
    """Reads one `--gin_param`; returns and raises as `scan_file` does."""
    return _scan(text, "--gin_param", folders, ())


def scan_text(text, name, folders=()):
    """Reads the text of a gin file that is called `name` in messages; returns and raises as `scan_file` does."""
    return _scan(text, name, folders, ())


def _read(path):
    try:
        if "://" in path:
            from trainer import storage  # imports TensorFlow, which a local file does not need

            return storage.read_text(path)
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown_path(path)} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}."
        ) from None
    except Exception as error:
        raise InputError(f"cannot read {shown_path(path)}: {error}") from None


def _scan(text, name, folders, including):
    lines = text.splitlines() or [""]
    comments = _comments(text)
    is_parameter = name == "--gin_param"

    def origin(location):
        number = min(location.line_num, len(lines))
        place = name if is_parameter else f"{name}:{number}"
        line = text.strip() if is_parameter else lines[number - 1].strip()
        return Origin(place, line, _comment_beside(number, lines, comments))

    statements = []
    try:
        for statement in config_parser.ConfigParser(text, _Values()):
            where = origin(statement.location)
            if isinstance(statement, config_parser.IncludeStatement):
                statements += scan_file(statement.filename, folders, where, including)
            elif isinstance(statement, config_parser.ImportStatement):
                statements.append(Import(statement.module, statement.format(), where))
            elif isinstance(statement, config_parser.BindingStatement):
                statements.append(_binding(statement, where))
    except (SyntaxError, tokenize.TokenError) as error:
        raise InputError(_syntax_message(error, name, lines)) from None
    if is_parameter and not statements:
        raise InputError(f"--gin_param {shlex.quote(text)}: expected name=value, for example --gin_param 'steps=200'.")
    return statements


def _binding(statement, origin):
    scope, name, parameter = statement.scope, statement.selector, statement.arg_name
    if name in ("macro", "gin.macro") and parameter == "value":  # the long form of a macro's definition
        scope, _, name = scope.rpartition("/")
        parameter = ""
    return Binding(scope, name, parameter, statement.value, origin)


def _comments(text):
    """Returns the text of the comment on each line that has one: {line number from 1: comment}."""
    comments = {}
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.lstrip("#").strip()
    return comments


def _comment_beside(number, lines, comments):
    if comments.get(number):
        return comments[number]
    above = []
    while number > 1 and lines[number - 2].lstrip().startswith("#"):
        number -= 1
        above.insert(0, comments.get(number, ""))
    return " ".join(above).strip()


def _syntax_message(error, name, lines):
    """Says where the text stops being gin, shows the line, and guesses what was meant."""
    if isinstance(error, tokenize.TokenError):
        reason, (number, _) = error.args
    else:
        reason, number = error.msg, error.lineno or 1
    line = lines[min(number, len(lines)) - 1].strip()
    reason = str(reason).splitlines()[0].strip().rstrip(".")
    key, equals, value = (part.strip() for part in line.partition("="))
    place = name if name == "--gin_param" else f"{name}:{number}"
    if "malformed node" in reason:
        reason = "a word without quotes"
    if reason.startswith("Expected ','"):
        hint = "A bracket may be open above this line."
    elif not equals:
        hint = 'Expected name=value, "include" or "import".'
    elif value in ("true", "false", "none", "null"):
        meant = {"true": True, "false": False}.get(value)
        hint = f"Write {key} = {meant}."
    elif value and value[0] not in "\"'([{@%-" and not value[0].isdigit():
        hint = f"Text needs quotes: {_with_value(key, value, name)}."
    elif not value:
        hint = f"The value after {key} = is missing."
    else:
        hint = "Values are Python literals, @configurables and %macros."
    return f"{place}: {line}\n  This is not gin: {reason}. {hint}"


def _with_value(key, value, name):
    quoted = '"' + value.split(" #")[0].strip().strip("\"'") + '"'
    return f"--gin_param {shlex.quote(f'{key}={quoted}')}" if name == "--gin_param" else f"{key} = {quoted}"
