"""Ranges that values are drawn from: `loguniform(1e-5, 1e-3)` and the like."""

import dataclasses
import math
import random

from launch.sweep.values import canonical, number, split_list

_KINDS = ("uniform", "loguniform", "integer", "loginteger", "choice")
_HELP = "uniform(a, b), loguniform(a, b), integer(a, b), loginteger(a, b) or choice(a, b, ...)"
_DIGITS = 4  # of a number that was drawn: enough to tell trials apart, few enough to read


@dataclasses.dataclass(frozen=True)
class Range:
    """Where the values of one parameter come from.

    Attributes:
        kind: `uniform`, `loguniform`, `integer`, `loginteger` (both ends included) or `choice`.
        low, high: the ends; None for a choice.
        choices: texts of values.
    """

    kind: str
    low: float | None = None
    high: float | None = None
    choices: tuple = ()

    def __str__(self):
        inside = self.choices or (self.low, self.high)
        return f"{self.kind}({', '.join(map(str, inside))})"

    @property
    def is_logarithmic(self):
        """Whether each decade is as likely as another."""
        return self.kind.startswith("log")

    def at(self, share):
        """Returns the text of the value below which a share (from 0 to 1) of all draws lies."""
        if self.kind == "choice":
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        low, high = self.low, self.high + (1 if self._is_whole else 0)
        value = low * (high / low) ** share if self.is_logarithmic else low + (high - low) * share
        return self.text(math.floor(value) if self._is_whole else value)

    def text(self, value):
        """Returns a number of the range as Gin reads it, with few digits."""
        if self._is_whole:
            return str(int(min(max(value, self.low), self.high)))
        rounded = float(f"{value:.{_DIGITS}g}")
        return repr(float(min(max(rounded, self.low), self.high)))

    def holds(self, text):
        """Returns whether the value of a text lies in the range."""
        if self.kind == "choice":
            return canonical(text) in map(canonical, self.choices)
        value = number(text)
        return value is not None and self.low <= value <= self.high and (isinstance(value, int) or not self._is_whole)

    @property
    def _is_whole(self):
        return self.kind.endswith("integer")


def parse_range(text):
    """Returns the `Range` of a text such as `loguniform(1e-5, 1e-3)`.

    Raises:
        ValueError: if it is none.
    """
    kind, parenthesis, _ = text.partition("(")
    kind = kind.strip()
    if not parenthesis or kind not in _KINDS:
        raise ValueError(f"{text}: write {_HELP}")
    items = split_list(text.partition("(")[1] + text.partition("(")[2])
    if kind == "choice":
        if len(set(map(canonical, items))) < len(items):
            raise ValueError(f"{text}: a value stands there twice")
        return Range(kind, choices=items)
    ends = [number(item) for item in items]
    if len(ends) != 2 or None in ends or not all(map(math.isfinite, ends)) or not ends[0] < ends[1]:
        raise ValueError(f"{text}: write two numbers, the smaller one first: {kind}(a, b)")
    if kind.startswith("log") and ends[0] <= 0:
        raise ValueError(f"{text}: {kind} needs numbers above 0")
    if kind.endswith("integer"):
        if any(end != int(end) for end in ends):
            raise ValueError(f"{text}: {kind} needs whole numbers")
        ends = [int(end) for end in ends]
    return Range(kind, *ends)


def draw(ranges, index, seed):
    """Returns one value for each parameter, as ((name, text), ...): a function of its arguments alone.

    Args:
        ranges: tuple of (name, `Range`).
        index: number of the draw.
        seed: of all draws; any number.
    """
    return tuple((name, range_.at(random.Random(f"{seed}/{name}/{index}").random())) for name, range_ in ranges)
