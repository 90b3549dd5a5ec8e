"""Merging: from many spills to fewer, so that a shard of a huge corpus is made from hundreds of files, not ten thousand.

A terabyte has 16,000 units and 10,000 shards: every shard would ask every spill for a few kilobytes, 160 million times. So
spills are merged by groups, and the sections by ranges, each group and range into one spill in which the sections of a
shard follow each other. That takes 35 x 16,000 readings, and leaves 250 for each shard.
"""

import dataclasses

from trainer.data import spills

_MOST_SPILLS = 512  # that are read as they are: of 32 GB of text
_GROUP_SPILLS = 64
_RANGES = (
    40  # of sections: a group has some gigabytes, a range of it so many times less, which a worker holds in memory
)


@dataclasses.dataclass(frozen=True)
class UnitSpills:
    """Spills as they were written, in the order of the corpus.

    Args:
        paths: tuple of paths.
    """

    paths: tuple

    def contents(self, section):
        """Yields the bytes of a section in all spills that have any, in order."""
        for path in self.paths:
            content = spills.read_content(path, section)
            if content:
                yield content


@dataclasses.dataclass(frozen=True)
class MergedSpills:
    """Spills that were merged.

    Args:
        stem: what the paths of the merged spills begin with.
        group_sizes: number of spills in each group.
        width: sections in a range.
    """

    stem: str
    group_sizes: tuple
    width: int

    def path(self, group, number):
        """Returns where the spill of a group and a range lies."""
        return f"{self.stem}-{group:06d}-{number:04d}.spill"

    def contents(self, section):
        """Yields the bytes of a section in all spills that have any, in order."""
        number, place = divmod(section, self.width)
        for group, size in enumerate(self.group_sizes):
            yield from filter(None, spills.read_contents(self.path(group, number), place * size, size))


@dataclasses.dataclass(frozen=True)
class MergeJob:
    """Sections `first` to `first + count - 1` of a group of spills, to be written to one at `path`."""

    paths: tuple
    first: int
    count: int
    path: str


def merge(job):
    """Merges a range of the sections of some spills.

    Args:
        job: `MergeJob`.
    """
    of_spills = [spills.read_contents(path, job.first, job.count) for path in job.paths]
    spills.write_spill(job.path, [content for of_section in zip(*of_spills, strict=True) for content in of_section], {})


def plan(paths, num_sections, stem):
    """Plans the merging of spills.

    Args:
        paths: of the spills.
        num_sections: of each.
        stem: what the paths of merged spills are to begin with.

    Returns:
        (what to read the sections from, list of `MergeJob` that make it): `UnitSpills` and no jobs if there are few.
    """
    if len(paths) <= _MOST_SPILLS:
        return UnitSpills(tuple(paths)), []
    groups = [tuple(paths[first : first + _GROUP_SPILLS]) for first in range(0, len(paths), _GROUP_SPILLS)]
    merged = MergedSpills(str(stem), tuple(map(len, groups)), -(-num_sections // _RANGES))
    return merged, [
        MergeJob(group, first, min(merged.width, num_sections - first), merged.path(place, number))
        for place, group in enumerate(groups)
        for number, first in enumerate(range(0, num_sections, merged.width))
    ]
