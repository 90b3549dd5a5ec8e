"""Learns a WordPiece vocabulary from text; the same text gives the same vocabulary.

    python -m tools.build_vocab --input corpus/ --size 30000 --output vocab.txt

`tools.prepare_data` does this by itself where no vocabulary is given; this is for a vocabulary to share among corpora.
"""

import argparse
import dataclasses
import tempfile

from tools import command_line
from trainer import storage
from trainer.data.preparation import DEFAULT_VOCABULARY_SIZE, PreparationSettings, build_vocabulary, is_small
from trainer.data.preparation_display import ProgressDisplay
from trainer.errors import InputError

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(PreparationSettings)}


def parser():
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.build_vocab", description=__doc__, formatter_class=command_line.HelpFormatter
    )
    result.add_argument("--output", metavar="FILE", required=True, help="the vocabulary, local or gs://")
    result.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    result.add_argument("--size", metavar="N", type=int, default=DEFAULT_VOCABULARY_SIZE, help="number of pieces")
    command_line.add_corpus_options(result, _DEFAULTS)
    command_line.add_worker_options(result)
    return result


def main(arguments):
    """Runs the command."""
    options = parser().parse_args(arguments)
    if storage.exists(options.output) and not options.overwrite:
        raise InputError(f"{options.output} exists already. Choose another name, or replace it with --overwrite.")
    settings = PreparationSettings(
        inputs=tuple(options.inputs or ()),
        source=options.source,
        python_packages=command_line.package_names(options.python_packages),
        vocabulary_size=options.size,
        lower_case=not options.cased,
        text_field=options.text_field,
        one_document_per_file=options.one_document_per_file,
        document_start=options.document_start,
        invalid_utf8=options.invalid_utf8,
    )
    workers = options.workers
    if workers is None and is_small(settings):
        workers = 0
    with (
        tempfile.TemporaryDirectory(prefix="build_vocab-") as work_folder,
        ProgressDisplay(plain=options.plain or None) as progress,
    ):
        vocabulary = build_vocabulary(settings, work_folder, num_workers=workers, progress=progress)
    vocabulary.save(options.output)
    print(f"{options.output}: {len(vocabulary):,} pieces, SHA-256 {vocabulary.sha256}")
    if len(vocabulary) < options.size:
        print(f"The corpus has no more pieces that occur at least twice; {options.size:,} were asked for.")
    return 0


if __name__ == "__main__":
    command_line.run(main)
