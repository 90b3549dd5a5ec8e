"""What a subject shows: a table for people and the same numbers for programs."""

import dataclasses

import rich.box
import rich.table


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one subject found.

    Attributes:
        title: of the table.
        columns: names of the columns; the first is text, the others are numbers.
        rows: tuples of texts.
        notes: lines under the table.
        numbers: dict of JSON values, everything that was measured.
    """

    title: str
    columns: tuple
    rows: tuple
    notes: tuple
    numbers: dict


def show(findings, console):
    """Prints findings.

    Args:
        findings: `Findings`.
        console: `rich.console.Console`.
    """
    # Few lines, so that everything fits 80 columns; where it does not, names are folded, never numbers.
    table = rich.table.Table(
        title=findings.title,
        title_justify="left",
        title_style="bold",
        box=rich.box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for number, column in enumerate(findings.columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    for row in findings.rows:
        table.add_row(*row)
    console.print(table)
    for note in findings.notes:
        console.print(f"  {note}", highlight=False)
    console.print()
