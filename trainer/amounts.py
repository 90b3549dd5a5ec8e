"""Numbers as people read them."""

import math

_THOUSANDS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(number):
    """Returns a short text of a rate or a count: `812`, `9.7`, `104k`, `1.35M`."""
    if not math.isfinite(number):
        return str(number)
    for size, unit in _THOUSANDS:
        if number >= max(size, 1e4):
            return f"{number / size:.0f}{unit}" if number >= 100 * size else f"{number / size:.3g}{unit}"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def byte_count(number):
    """Returns a text of a number of bytes in binary units: `512 B`, `1.5 GiB`."""
    for name, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:.0f} B"


def duration(seconds):
    """Returns a text of a time: `0:01:32`, or `2 d 3:04:05`."""
    seconds = round(max(0.0, seconds))
    days, rest = divmod(seconds, 86_400)
    text = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text
