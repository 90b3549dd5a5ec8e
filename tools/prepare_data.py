"""Turns text into rows for pretraining: tokenized, packed, divided into shards, with a manifest.

    python -m tools.prepare_data --source python_docs --output data/docs
    python -m tools.prepare_data --input corpus/ --vocab vocab.txt --output data/corpus
    python -m tools.prepare_data --input 'gs://bucket/*.jsonl.gz' --vocab_size 30000 --output gs://bucket/prepared

The same corpus and options give the same bytes on any number of cores, and on a cluster through Apache Beam (--runner).
Interrupted, it continues when it is run again.
"""

import argparse
import dataclasses

import rich.console

from tools import command_line
from trainer.data import packing
from trainer.data.beam_workers import RUNNERS, BeamOptions
from trainer.data.preparation import DEFAULT_VOCABULARY_SIZE, PreparationSettings, is_small, prepare
from trainer.data.preparation_display import ProgressDisplay, summary_table
from trainer.errors import InputError

_MUCH_PADDING = 0.3
_LOCAL = "local"
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
    group.add_argument("--keep_order", action="store_true", help="do not shuffle the documents of a shard")
    group.add_argument("--seed", metavar="N", type=int, default=_DEFAULTS["seed"], help="of all random choices")
    _add_choice_of_documents(result)
    command_line.add_worker_options(result)
    result.add_argument("--work_folder", metavar="DIR", help="for intermediate files (default: inside --output)")
    result.add_argument(
        "--runner",
        metavar="NAME",
        default=_LOCAL,
        help=f"{_LOCAL}, or where Apache Beam does the work: {', '.join(RUNNERS)}; Beam's own options may follow",
    )
    return result


def _add_choice_of_documents(parser):
    """Adds the options that say which documents are left out."""
    group = parser.add_argument_group("documents to leave out")
    group.add_argument("--keep_duplicates", action="store_true", help="keep documents of the same text")
    group.add_argument(
        "--near_duplicates",
        metavar="SIMILARITY",
        type=float,
        help="keep one of documents whose runs of five tokens are as similar as this (Jaccard; 0.8 is usual)",
    )
    for of in ("words", "characters"):
        group.add_argument(f"--min_{of}", metavar="N", type=int, help=f"leave out documents with fewer {of}")
        group.add_argument(f"--max_{of}", metavar="N", type=int, help=f"leave out documents with more {of}")
    for name, what in (("symbol", "punctuation and other symbols"), ("digit", "digits")):
        group.add_argument(
            f"--max_{name}_share",
            metavar="SHARE",
            type=float,
            help=f"leave out documents with a higher share of {what}",
        )
    group.add_argument(
        "--languages",
        metavar="CODE,...",
        help="leave out documents in other languages, e.g. en,de (needs the package py3langid)",
    )


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
        near_duplicates=options.near_duplicates,
        min_words=options.min_words,
        max_words=options.max_words,
        min_characters=options.min_characters,
        max_characters=options.max_characters,
        max_symbol_share=options.max_symbol_share,
        max_digit_share=options.max_digit_share,
        languages=command_line.package_names(options.languages or ""),
    )


def beam_options_from(options, rest, command):
    """Returns the `BeamOptions` of a parsed command line and the options left over; None for this machine's workers."""
    if options.runner == _LOCAL:
        if rest:
            command.error(f"unrecognized arguments: {' '.join(rest)}")
        return None
    if options.workers is not None:
        raise InputError(
            f"--workers counts processes of --runner {_LOCAL}. For Beam say --direct_num_workers (with "
            "--direct_running_mode multi_processing), --max_num_workers (dataflow) or --parallelism (flink)."
        )
    own_flags = tuple(flag for action in command._actions for flag in action.option_strings)
    return BeamOptions(options.runner, tuple(rest), own_flags)


def main(arguments):
    """Runs the command."""
    command = parser()
    options, rest = command.parse_known_args(arguments)
    settings = settings_from(options)
    beam = beam_options_from(options, rest, command)
    workers = options.workers
    if workers is None and beam is None and is_small(settings):
        workers = 0
    with ProgressDisplay(plain=options.plain or None) as progress:
        manifest = prepare(
            settings,
            options.output,
            num_workers=workers,
            beam=beam,
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
