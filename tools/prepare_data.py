"""Turns text into rows for pretraining: tokenized, packed, divided into shards, with a manifest.

    python -m tools.prepare_data --source python_docs --output data/docs
    python -m tools.prepare_data --input corpus/ --vocab vocab.txt --output data/corpus
    python -m tools.prepare_data --input 'gs://bucket/*.jsonl.gz' --vocab_size 30000 --output gs://bucket/prepared

The same corpus and options give the same bytes on any number of cores. Interrupted, it continues when it is run again.
"""

import argparse
import dataclasses

import rich.console

from tools import command_line
from trainer.data import packing
from trainer.data.preparation import DEFAULT_VOCABULARY_SIZE, PreparationSettings, is_small, prepare
from trainer.data.preparation_display import ProgressDisplay, summary_table
from trainer.errors import InputError

_MUCH_PADDING = 0.3
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(PreparationSettings)}


def parser():
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.prepare_data", description=__doc__, formatter_class=command_line.HelpFormatter
    )
    result.add_argument("--output", metavar="DIR", required=True, help="folder for the prepared data, local or gs://")
    result.add_argument("--overwrite", action="store_true", help="replace data of other options in --output")
    command_line.add_corpus_options(result, _DEFAULTS)
    group = result.add_argument_group("vocabulary")
    group.add_argument("--vocab", metavar="FILE", help="a vocab.txt (default: one is learned from the corpus)")
    group.add_argument(
        "--vocab_size",
        metavar="N",
        type=int,
        help=f"pieces of the learned vocabulary (default: {DEFAULT_VOCABULARY_SIZE})",
    )
    group = result.add_argument_group("rows")
    group.add_argument(
        "--sequence_length", metavar="N", type=int, default=_DEFAULTS["sequence_length"], help="tokens a row"
    )
    group.add_argument(
        "--packing",
        choices=packing.MODES,
        default=_DEFAULTS["packing"],
        help="full_sentences as RoBERTa; pairs for next sentence (BERT) or sentence order (ALBERT) prediction",
    )
    group.add_argument(
        "--short_rows",
        metavar="SHARE",
        type=float,
        default=_DEFAULTS["short_rows"],
        help="share of short pairs",
    )
    group.add_argument(
        "--held_out",
        metavar="SHARE",
        type=float,
        default=_DEFAULTS["held_out"],
        help="share of the documents for evaluation",
    )
    group.add_argument("--num_shards", metavar="N", type=int, help="training shards (default: of about 64 MB)")
    group.add_argument(
        "--compress", action="store_true", help="gzip the shards: smaller, but reading cannot seek in them"
    )
    group.add_argument("--keep_duplicates", action="store_true", help="keep documents of the same text")
    group.add_argument("--keep_order", action="store_true", help="do not shuffle the documents of a shard")
    group.add_argument("--seed", metavar="N", type=int, default=_DEFAULTS["seed"], help="of all random choices")
    command_line.add_worker_options(result)
    result.add_argument("--work_folder", metavar="DIR", help="for intermediate files (default: inside --output)")
    return result


def settings_from(options):
    """Returns the `PreparationSettings` of a parsed command line."""
    if options.vocab is not None and options.vocab_size is not None:
        raise InputError("--vocab uses a vocabulary and --vocab_size learns one: give only one of them.")
    return PreparationSettings(
        inputs=tuple(options.inputs or ()),
        source=options.source,
        python_packages=command_line.package_names(options.python_packages),
        vocabulary=options.vocab,
        vocabulary_size=DEFAULT_VOCABULARY_SIZE if options.vocab_size is None else options.vocab_size,
        lower_case=not options.cased,
        sequence_length=options.sequence_length,
        packing=options.packing,
        short_rows=options.short_rows,
        held_out=options.held_out,
        num_shards=options.num_shards,
        compress=options.compress,
        text_field=options.text_field,
        one_document_per_file=options.one_document_per_file,
        document_start=options.document_start,
        invalid_utf8=options.invalid_utf8,
        keep_duplicates=options.keep_duplicates,
        shuffle_documents=not options.keep_order,
        seed=options.seed,
    )


def main(arguments):
    """Runs the command."""
    options = parser().parse_args(arguments)
    settings = settings_from(options)
    workers = options.workers
    if workers is None and is_small(settings):
        workers = 0
    with ProgressDisplay(plain=options.plain or None) as progress:
        manifest = prepare(
            settings,
            options.output,
            num_workers=workers,
            work_folder=options.work_folder,
            overwrite=options.overwrite,
            progress=progress,
        )
    console = rich.console.Console()
    console.print(summary_table(options.output, manifest))
    if manifest.summary["padding_share"] > _MUCH_PADDING:
        console.print(
            "Much of the rows is padding, because the documents are short. "
            + (
                "A smaller --sequence_length wastes less."
                if options.packing == "full_sentences"
                else "--packing full_sentences, a smaller --sequence_length, or --document_start to tell where longer "
                "documents begin wastes less."
            ),
            soft_wrap=True,
        )
    return 0


if __name__ == "__main__":
    command_line.run(main)
