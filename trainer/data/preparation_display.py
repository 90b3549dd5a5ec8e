"""What a person sees of data preparation: a progress bar (plain lines without a terminal) and a table at the end."""

import time

import rich.console
import rich.progress
import rich.table

from trainer.amounts import duration
from trainer.data.filters import REASONS

_PLAIN_INTERVAL_SECONDS = 10.0


def _amount(number, unit):
    """A number of a unit, short."""
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if number >= size:
                return f"{number / size:,.1f} {name}"
    return f"{number:,.0f} {unit}"


class ProgressDisplay:
    """Shows the calls that `preparation.prepare` makes to its `progress`; a context manager.

    Args:
        console: a `rich` console; None for standard error.
        plain: whether to print lines instead of a bar; None where the console is no terminal.
    """

    def __init__(self, console=None, plain=None):
        self._console = console or rich.console.Console(stderr=True)
        self._plain = not self._console.is_terminal if plain is None else plain
        self._phase, self._task, self._printed = None, None, 0.0
        self._started, self._first = 0.0, (0, 0)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description:<24}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
        )

    def __enter__(self):
        if not self._plain:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if not self._plain:
            self._bar.stop()

    def __call__(self, phase, done, total, unit, tokens):
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._started, self._first, self._printed = phase, now, (done, tokens), 0.0
            if not self._plain:
                self._task = self._bar.add_task(phase, total=total, rate="")
        seconds = max(now - self._started, 1e-3)
        made, made_tokens = done - self._first[0], tokens - self._first[1]
        rate = f"{_amount(made / seconds, unit)}/s" if made else ""
        if made_tokens:
            rate += f", {made_tokens / seconds:,.0f} tokens/s"
        if not self._plain:
            self._bar.update(self._task, completed=done, total=total, rate=rate)
            return
        if done >= total or now - self._printed >= _PLAIN_INTERVAL_SECONDS:
            self._printed = now
            left = f", {duration(seconds / made * (total - done))} left" if made and done < total else ""
            line = f"{phase}: {_amount(done, unit)} of {_amount(total, unit)}"
            self._console.print(f"{line}{', ' if rate else ''}{rate}{left}", highlight=False, soft_wrap=True)


def summary_table(folder, manifest):
    """Returns a `rich` table that sums up a prepared data set.

    Args:
        folder: where it is.
        manifest: its `Manifest`.
    """
    summary = manifest.summary
    table = rich.table.Table(title=f"{folder}", show_header=False, title_justify="left", title_style="bold")
    table.add_column()
    table.add_column(justify="right")

    def add(name, value):
        table.add_row(name, value)

    duplicates = summary.get("duplicate_documents", 0)
    add("documents", f"{summary['documents']:,}" + (f" ({duplicates:,} duplicates left out)" if duplicates else ""))
    for reason, count in summary.get("filtered_documents", {}).items():
        add("left out", f"{count:,} {REASONS[reason]}")
    if "near_duplicate_documents" in summary:
        add("left out", f"{summary['near_duplicate_documents']:,} near-duplicates")
    add("text", _amount(summary["text_bytes"], "bytes"))
    add("tokens", f"{summary['tokens']:,}")
    add("vocabulary", f"{manifest.vocabulary_size:,} pieces, {'uncased' if manifest.lower_case else 'cased'}")
    add("unknown tokens", f"{summary['unknown_token_share']:.3%}")
    add("rows", f"{summary['rows']:,} of {manifest.sequence_length} tokens, {manifest.packing}")
    add("padding", f"{summary['padding_share']:.2%}")
    held_out = summary["held_out_rows"]
    add("held out", f"{held_out:,} rows ({held_out / max(1, summary['rows']):.2%})")
    for split, shards in manifest.splits.items():
        if not shards:
            continue
        sizes = [shard.bytes for shard in shards]
        low, high = _amount(min(sizes), "bytes"), _amount(max(sizes), "bytes")
        add(f"{split} shards", f"{len(shards):,} of {low if low == high else f'{low} to {high}'}")
    if "seconds" in summary:
        add("time", f"{duration(summary['seconds'])} ({summary['tokens_per_second']:,} tokens/s, {_people(summary)})")
    return table


def _people(summary):
    if "runner" in summary:
        return f"Beam, {summary['runner']}"
    workers = summary["workers"]
    return "in one process" if workers < 2 else f"{workers} workers"
