"""Copies a folder between a disk and a bucket: prepared data, a run directory, weights.

    python -m tools.sync data/corpus gs://bucket/corpus
    python -m tools.sync gs://bucket/corpus /ssd/corpus

Only what differs is copied, several files at a time, and compared by CRC-32C. Interrupted, it continues when it is run
again. Files that are only in TARGET stay.
"""

import argparse

import rich.console

from tools import command_line
from trainer.amounts import byte_count
from trainer.data.preparation_display import ProgressDisplay
from trainer.storage.google_cloud import DEFAULT_TRANSFERS
from trainer.storage.preflight import check_storage
from trainer.storage.synchronization import compare_folders, synchronize


def parser():
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.sync", description=__doc__, formatter_class=command_line.HelpFormatter
    )
    result.add_argument("source", metavar="SOURCE", help="folder to copy from, local or gs://")
    result.add_argument("target", metavar="TARGET", help="folder to copy to; one of the two is gs://")
    result.add_argument(
        "--transfers", metavar="N", type=int, default=DEFAULT_TRANSFERS, help="files that are copied at the same time"
    )
    result.add_argument("--dry_run", action="store_true", help="only tell what would be copied")
    result.add_argument("--plain", action="store_true", help="print lines instead of a progress bar")
    return result


def main(arguments):
    """Runs the command."""
    options = parser().parse_args(arguments)
    console = rich.console.Console(highlight=False, soft_wrap=True)
    check_storage([options.source], [] if options.dry_run else [options.target], _silent)
    difference = compare_folders(options.source, options.target)
    total = sum(difference.to_copy.values())
    console.print(
        f"{len(difference.to_copy):,} files to copy ({byte_count(total)}), {len(difference.same):,} are there already"
        + (f", {len(difference.extra):,} are only in {options.target} and stay" if difference.extra else "")
    )
    if options.dry_run:
        for name, size in sorted(difference.to_copy.items()):
            console.print(f"  {name}  {byte_count(size)}", markup=False)
        return 0
    done = 0
    with ProgressDisplay(plain=options.plain or None) as progress:

        def on_done(_, size):
            nonlocal done
            done += size
            progress("copying", done, total, "bytes", 0)

        synchronize(options.source, options.target, difference, transfers=options.transfers, on_done=on_done)
    console.print(f"{options.target} holds all {len(difference.to_copy) + len(difference.same):,} files, verified")
    return 0


def _silent(_):
    """What is all right needs no telling here."""


if __name__ == "__main__":
    command_line.run(main)
