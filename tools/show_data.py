"""Prints rows of a prepared data set as text: documents, segments, padding, and the tokens that training would mask.

    python -m tools.show_data data/docs
    python -m tools.show_data data/docs --split held_out --first 100 --rows 3 --masking whole_word

Each document of a row has a colour of its own, segment B another; a masked token is shown as ‹original→replacement›.
"""

import argparse

import numpy as np
import rich.console
import rich.text

from tools import command_line
from trainer import storage
from trainer.data import masking
from trainer.data.documents import open_bytes
from trainer.data.manifests import load_manifest
from trainer.data.records import decode_rows, row_hashes
from trainer.data.vocabulary import SPECIAL_TOKENS, load_vocabulary
from trainer.errors import InputError
from trainer.randomness import example_keys

_DOCUMENT_COLOURS = ("cyan", "green", "yellow", "bright_blue", "bright_magenta")
_SEGMENT_B_COLOUR = "magenta"
_FRAME_BYTES = 12  # of TFRecord framing before a record
_LABELS = {
    "sentence_pair_nsp": {0: "B follows A", 1: "B is from another document"},
    "sentence_pair_sop": {0: "A and B in order", 1: "A and B swapped"},
}


def parser():
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.show_data", description=__doc__, formatter_class=command_line.HelpFormatter
    )
    result.add_argument("folder", help="a prepared data set, local or gs://")
    result.add_argument("--split", choices=["train", "held_out"], default="train", help="which rows")
    result.add_argument("--first", metavar="N", type=int, default=0, help="number of the first row in the split")
    result.add_argument("--rows", metavar="N", type=int, default=5, help="how many rows")
    result.add_argument("--masking", choices=["none", *masking.MODES], default="token", help="how tokens are masked")
    result.add_argument("--rate", type=float, default=masking.MaskingConfig.rate, help="share of tokens masked")
    result.add_argument("--seed", type=int, default=0, help="of the masking")
    result.add_argument("--step", type=int, default=0, help="of the masking: every step masks other tokens")
    return result


def read_records(folder, manifest, split, first, count):
    """Reads records by their number in a split, seeking to them.

    Args:
        folder: the data set.
        manifest: its `Manifest`.
        split: `train` or `held_out`.
        first: number of the first row.
        count: most rows to read.

    Returns:
        `[rows, record_bytes]` uint8.

    Raises:
        InputError: if there is no such row, or a row is damaged.
    """
    total = manifest.rows(split)
    if not 0 <= first < total:
        raise InputError(f"{folder} has {total:,} rows in {split}, numbered from 0: there is no row {first:,}.")
    form, parts = manifest.row_format, []
    for shard in manifest.splits[split]:
        if count > 0 and first < shard.rows:
            rows = min(count, shard.rows - first)
            path = storage.join(folder, shard.name)
            with open_bytes(path) as file:
                file.seek(first * form.stride)
                content = file.read(rows * form.stride)
            if len(content) != rows * form.stride:
                raise InputError(f"shard {path} ends before row {first + rows - 1:,}: it is truncated. Copy it again.")
            framed = np.frombuffer(content, np.uint8).reshape(rows, form.stride)
            records = np.ascontiguousarray(framed[:, _FRAME_BYTES : _FRAME_BYTES + form.record_bytes])
            stored = np.ascontiguousarray(records[:, :4]).view("<u4")[:, 0]
            damaged = np.flatnonzero(row_hashes(records, shard.salt, first) != stored)
            if len(damaged):
                raise InputError(f"shard {path} is damaged at row {first + damaged[0]:,}. Copy it again.")
            parts.append(records)
            count -= rows
        first = max(0, first - shard.rows)
    return np.concatenate(parts)


def render_row(pieces, token_ids, segment_ids, document_ids, masked_ids=None, chosen=()):
    """Returns a row as coloured text, a line for each document.

    Args:
        pieces: the vocabulary's pieces.
        token_ids, segment_ids, document_ids: `[length]` arrays as `records.Rows` has them.
        masked_ids: `[length]` token ids after masking; None for no masking.
        chosen: places of the tokens to predict.
    """
    text, chosen = rich.text.Text(), set(chosen)
    for place in range(int((document_ids > 0).sum())):
        piece, document = pieces[token_ids[place]], document_ids[place]
        if place and document != document_ids[place - 1]:
            text.append("\n")
        elif place and not (piece.startswith("##") and place not in chosen):
            text.append(" ")
        colour = _SEGMENT_B_COLOUR if segment_ids[place] else _DOCUMENT_COLOURS[(document - 1) % len(_DOCUMENT_COLOURS)]
        if place in chosen:
            text.append(f"‹{piece}→{pieces[masked_ids[place]]}›", style=f"bold reverse {colour}")
        elif piece in SPECIAL_TOKENS:
            text.append(piece, style="bold red" if piece == "[UNK]" else "dim")
        else:
            text.append(piece.removeprefix("##") if place and piece.startswith("##") else piece, style=colour)
    padding = int((document_ids == 0).sum())
    if padding:
        text.append(f"\n+ {padding} [PAD]", style="dim")
    return text


def main(arguments):
    """Runs the command."""
    options = parser().parse_args(arguments)
    if options.rows < 1:
        raise InputError(f"--rows must be at least 1, got {options.rows}")
    manifest = load_manifest(options.folder)
    vocabulary = load_vocabulary(storage.join(options.folder, manifest.vocabulary))
    records = read_records(options.folder, manifest, options.split, options.first, options.rows)
    rows = decode_rows(manifest.row_format, records)
    masked_ids, chosen = [None] * len(records), [()] * len(records)
    if options.masking != "none":
        try:
            config = masking.MaskingConfig(mode=options.masking, rate=options.rate)
        except ValueError as error:
            raise InputError(f"--rate: {error}") from None
        keys = example_keys(options.seed, options.step, np.arange(options.first, options.first + len(records)))
        masked = masking.mask_tokens(config, keys, rows.token_ids, masking.TokenKinds.of(list(vocabulary.pieces)))
        masked_ids, weights = np.array(masked.token_ids), np.array(masked.weights)
        chosen = [np.array(masked.positions)[row][weights[row] > 0].tolist() for row in range(len(records))]
    console = rich.console.Console(highlight=False)
    for row in range(len(records)):
        label = _LABELS.get(manifest.packing, {}).get(int(rows.pair_labels[row]))
        console.rule(f"{options.split} row {options.first + row:,}" + (f": {label}" if label else ""), align="left")
        arrays = (array[row] for array in (rows.token_ids, rows.segment_ids, rows.document_ids))
        console.print(render_row(vocabulary.pieces, *arrays, masked_ids[row], chosen[row]))
    return 0


if __name__ == "__main__":
    command_line.run(main)
