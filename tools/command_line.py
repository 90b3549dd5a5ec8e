"""What the commands in `tools/` share: options for a corpus, and errors as messages with exit codes.

Import it before anything that imports TensorFlow, which is told here to keep its log to itself.
"""

import argparse
import os
import sys

from trainer.environment import import_tensorflow_quietly
from trainer.errors import TrainerError

import_tensorflow_quietly(os.environ)  # here, and in worker processes, which import this module too


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of the description and shows defaults where there are any."""

    def _get_help_string(self, action):
        if action.default in (None, False, (), argparse.SUPPRESS) or action.required:
            return action.help
        return super()._get_help_string(action)


def run(main, arguments=None):
    """Runs a command's `main(arguments)` and exits: 0, or a `TrainerError`'s code and its message, no stack trace."""
    try:
        code = main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def package_names(text):
    """Splits an option's list of package names."""
    return tuple(name for name in text.replace(",", " ").split() if name)


def add_corpus_options(parser, defaults):
    """Adds the options that say which texts to read and how.

    Args:
        parser: an `argparse` parser.
        defaults: dictionary of the default of each option, by name.
    """
    group = parser.add_argument_group("corpus")
    group.add_argument(
        "--input",
        dest="inputs",
        metavar="PATH",
        nargs="+",
        action="extend",
        default=None,
        help="files (.txt, .jsonl, either gzipped), folders (with their subfolders) or patterns; local or gs://",
    )
    group.add_argument(
        "--source",
        choices=["python_docs"],
        help="instead of --input: English text that is on this machine, the documentation inside Python and packages",
    )
    group.add_argument(
        "--python_packages",
        metavar="NAME,...",
        default=",".join(defaults["python_packages"]),
        help="packages of --source python_docs; stdlib is the standard library",
    )
    group.add_argument(
        "--text_field",
        metavar="NAME",
        default=defaults["text_field"],
        help="field of a .jsonl line with the text",
    )
    group.add_argument(
        "--one_document_per_file",
        action="store_true",
        help="a .txt file is one document (default: blank lines separate documents)",
    )
    group.add_argument(
        "--document_start",
        metavar="REGEX",
        help="a line that matches begins a document, and blank lines mean nothing; WikiText: ' = [^=]+ = $'",
    )
    group.add_argument(
        "--invalid_utf8",
        choices=["refuse", "replace"],
        default=defaults["invalid_utf8"],
        help="what to do with bytes that are not UTF-8",
    )
    group.add_argument("--cased", action="store_true", help="keep upper case and accents (default: uncased)")


def add_worker_options(parser):
    """Adds the options that say how to work; they do not change the result."""
    group = parser.add_argument_group("work")
    group.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="processes (default: one per core; small corpora are done in the command's own process, as with 0)",
    )
    group.add_argument("--plain", action="store_true", help="print lines instead of a progress bar")
