"""Values as Gin reads them, taken as texts: a list split into its items, and texts that mean the same recognised.

Gin itself is not imported, and nothing is evaluated but literals: a reference (`@name()`, `%name`) stays a text.
"""

import ast
import io
import re
import tokenize

_OPENING, _CLOSING = "([{", ")]}"
_LAYOUT = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
_NAME = re.compile(r"[A-Za-z_]\w*([./][A-Za-z_]\w*)*")


def split_assignment(text):
    """Splits `name=value`; returns (name, value).

    Raises:
        ValueError: if there is no name that Gin could know.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not _NAME.fullmatch(name):
        raise ValueError(f"{text!r}: write NAME=..., such as 'learning_rate=[1e-5, 3e-5]'")
    return name, value.strip()


def split_list(text):
    """Splits the text of a list or tuple at its own commas.

    Args:
        text: for example `[1e-5, 'a, b', (1, 2), @adamw()]`.

    Returns:
        Tuple of the texts of the items, as they were written.

    Raises:
        ValueError: if it is no list, has no items, or an item is no value.
    """
    tokens = _tokens(text)
    words = [token.string for token, _ in tokens]
    if (words[0], words[-1]) not in (("[", "]"), ("(", ")")):
        raise ValueError(f"{text}: write a list of values, such as [1e-5, 3e-5]")
    items, depth, start = [], 0, None
    for index, (token, (begin, end)) in enumerate(tokens):
        is_operator = token.type == tokenize.OP
        if is_operator and token.string in _OPENING:
            depth += 1
            if depth == 1:
                start = end
                continue
        elif is_operator and token.string in _CLOSING:
            depth -= 1
            if depth == 0 and index < len(tokens) - 1:
                raise ValueError(f"{text}: write one list of values, such as [1e-5, 3e-5]")
        if (depth == 1 and is_operator and token.string == ",") or depth == 0:
            items.append(text[start:begin].strip())
            start = end
    if items and not items[-1]:  # behind the last comma
        items.pop()
    if depth or not items or "" in items:
        raise ValueError(f"{text}: write a list of values, such as [1e-5, 3e-5]")
    for item in items:
        canonical(item)
    return tuple(items)


def canonical(text):
    """Returns one text for all texts of the same value: `1e-5` and `0.00001`, `'a'` and `"a"`.

    Raises:
        ValueError: if Gin would not read it.
    """
    return repr(_evaluated(text))


def number(text):
    """Returns the number that a text stands for, or None if it stands for something else; `True` is no number."""
    value = _evaluated(text)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def literal(text):
    """Returns the number, boolean or string that a text stands for; of anything else the text itself."""
    value = _evaluated(text)
    return value if isinstance(value, bool | int | float | str) else text


class _Reference:
    """`@name` or `%name`, which only Gin can resolve."""

    def __init__(self, text):
        self._text = text

    def __repr__(self):
        return self._text


def _evaluated(text):
    """Returns the value of a text, with a `_Reference` in each place where there is one."""
    parts, references = [], {}
    words = [token.string for token, _ in _tokens(text)]
    while words:
        word = words.pop(0)
        if word not in ("@", "%"):
            parts.append(word)
            continue
        name = word
        while words and (words[0] in ("/", ".") or _NAME.fullmatch(words[0])):
            name += words.pop(0)
        if word == "@" and words[:2] == ["(", ")"]:
            name += "".join(words[:2])
            del words[:2]
        if not _NAME.fullmatch(name.strip("@%()")):
            raise ValueError(f"{text}: {name!r} is no reference; write @name, @name() or %name")
        placeholder = f"reference {len(references)} of {text}"
        references[placeholder] = _Reference(name)
        parts.append(repr(placeholder))
    try:
        value = ast.literal_eval(" ".join(parts))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        hint = f', text needs quotes: "{text}"' if _NAME.fullmatch(text) else ""
        raise ValueError(f"{text}: not a value that Gin reads{hint}") from None
    return _resolved(value, references)


def _resolved(value, references):
    if isinstance(value, dict):
        return {_resolved(key, references): _resolved(item, references) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(item, references) for item in value)
    return references.get(value, value) if isinstance(value, str) else value


def _tokens(text):
    """Returns [(token, (where it begins in the text, where it ends))], without those of layout.

    Raises:
        ValueError: if there are none, or what Python's tokenizer does not know.
    """
    starts = [0]
    for line in io.StringIO(text):
        starts.append(starts[-1] + len(line))
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.ERRORTOKEN and token.string.strip()):
                raise ValueError(f"{text}: {token.string[:20]!r} cannot stand in a value")
            if token.type not in _LAYOUT and token.string.strip():
                (row, column), (last_row, last_column) = token.start, token.end
                found.append((token, (starts[row - 1] + column, starts[last_row - 1] + last_column)))
    except (tokenize.TokenError, SyntaxError):
        raise ValueError(f"{text}: a bracket or a quote is not closed") from None
    if not found:
        raise ValueError("a value is missing")
    return found
