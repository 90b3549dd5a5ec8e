"""The trials that a sweep asks for: every combination of the values that its axes have."""

import dataclasses
import hashlib
import itertools
import json
import re

from launch.sweep.ranges import draw, parse_range
from launch.sweep.values import canonical, split_assignment, split_list

SEED = "seed"
DEFAULT_TRIALS = 12


@dataclasses.dataclass(frozen=True)
class Space:
    """What a sweep varies.

    Attributes:
        axes: tuple of axes; an axis is a tuple of rows, a row a tuple of (name, text of a value): one pair for `--grid`,
            several for `--zip`.
        random: tuple of (name, `Range`) to draw from.
        search: tuple of (name, `Range`) to search in.
        trials: number of draws, or of points of the search; each comes with every combination of the axes.
        random_seed: of draws and search.
    """

    axes: tuple = ()
    random: tuple = ()
    search: tuple = ()
    trials: int = DEFAULT_TRIALS
    random_seed: int = 0

    @property
    def names(self):
        """The names of all parameters that vary."""
        return (
            *(name for axis in self.axes for name, _ in axis[0]),
            *(name for name, _ in (*self.random, *self.search)),
        )

    def combinations(self):
        """Returns the combinations of the axes, in order; a combination is a tuple of (name, text)."""
        return [tuple(itertools.chain(*rows)) for rows in itertools.product(*self.axes)]

    def points(self):
        """Returns {key: set of parameters}, in order, of all but a search; a set is a tuple of (name, text)."""
        if self.search:
            return {}
        draws = [draw(self.random, index, self.random_seed) for index in range(self.trials)] if self.random else [()]
        points = [(*drawn, *rest) for drawn in draws for rest in self.combinations()]
        return {key_of(point): point for point in points}


def make_space(*, grid=(), zipped=(), random=(), search=(), seeds=None, trials=None, random_seed=None):
    """Makes a space of the texts of a command line.

    Args:
        grid: texts `name=[value, ...]`, combined with each other.
        zipped: texts `name=[value, ...]`, taken together: the first values of all, the second of all, ...
        random: texts `name=range`, see `launch.sweep.ranges`.
        search: texts `name=range`.
        seeds: text `0,1,2`: values of the macro `seed`; None for none.
        trials: number of draws or points, or None.
        random_seed: of draws and search, or None.

    Returns:
        `Space`.

    Raises:
        ValueError: with a message for a person.
    """
    axes = [_axis("--grid", text) for text in grid]
    together = [_axis("--zip", text) for text in zipped]
    if together:
        lengths = {column[0][0][0]: len(column) for column in together}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"--zip takes values together, so all need as many: {counts}")
        axes.append(tuple(tuple(itertools.chain(*rows)) for rows in zip(*together, strict=True)))
    if seeds is not None:
        if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", seeds):
            raise ValueError(f"--seeds {seeds}: write whole numbers with commas between, such as 0,1,2")
        axes.append(_axis("--seeds", f"{SEED}=[{seeds}]"))
    ranges = {"--random": _ranges("--random", random), "--search": _ranges("--search", search)}
    space = Space(
        tuple(axes),
        ranges["--random"],
        ranges["--search"],
        DEFAULT_TRIALS if trials is None else trials,
        random_seed or 0,
    )
    _check(space, trials)
    return space


def _check(space, trials):
    for name in space.names:
        if space.names.count(name) > 1:
            raise ValueError(f"{name} is varied twice; give all its values once")
    if not space.names:
        raise ValueError("nothing varies: give --grid, --zip, --random, --search or --seeds (--help has examples)")
    if trials is not None and not (space.random or space.search):
        raise ValueError("--trials is the number of draws of --random or points of --search: give one of these")
    if space.trials < 1:
        raise ValueError(f"--trials {space.trials}: at least 1")
    if space.search and space.random:
        raise ValueError("--search and --random do not go together: search all of these, or draw all")
    if space.search and any(not is_seed(name) for axis in space.axes for name, _ in axis[0]):
        raise ValueError("--search goes with --seeds alone; what else varies can be searched as choice(a, b)")


def _axis(option, text):
    name, values = _named(option, text)
    try:
        items = split_list(values)
    except ValueError as error:
        raise ValueError(f"{option} {name}: {error}") from None
    known = [canonical(item) for item in items]
    for item, same in zip(items, known, strict=True):
        if known.count(same) > 1 and option != "--zip":
            raise ValueError(f"{option} {name}: {item} stands there twice")
    return tuple(((name, item),) for item in items)


def _ranges(option, texts):
    ranges = []
    for text in texts:
        name, inside = _named(option, text)
        try:
            ranges.append((name, parse_range(inside)))
        except ValueError as error:
            raise ValueError(f"{option} {name}: {error}") from None
    return tuple(ranges)


def _named(option, text):
    try:
        return split_assignment(text)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None


def is_seed(name):
    """Returns whether a parameter is a seed: trials that differ in it alone are repetitions of one another."""
    return name.rpartition(".")[2].rpartition("/")[2] == SEED


def without_seeds(parameters):
    """Returns a set of parameters without its seeds."""
    return tuple((name, text) for name, text in parameters if not is_seed(name))


def key_of(parameters):
    """Returns what is the same for all texts and orders of the same set of parameters."""
    return json.dumps(sorted((name, canonical(text)) for name, text in parameters))


def hash_of(parameters):
    """Returns eight hexadecimal digits that stand for a set of parameters."""
    return hashlib.sha256(key_of(parameters).encode()).hexdigest()[:8]
