"""The command line: reads the configuration, starts the devices, and does what the mode says."""

import argparse
import contextlib
import os
import sys

from trainer import storage
from trainer.config import load_config
from trainer.configurables import CONFIGURABLES
from trainer.errors import InputError, TrainerError

EXPORT_FORMATS = ("saved_model", "hugging_face", "tensorflow1", "keras", "checkpoint")
MODES = ("train", "evaluate", "predict", "export", "plan", "replay")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Pretrains and fine-tunes BERT-family models: one Gin file, any hardware, the same run.",
        epilog="Exit codes: 0 finished; 2 bad configuration or input; 70 training failed; 74 storage failed; "
        "75 stopped on request, state saved, start me again.",
    )
    parser.add_argument(
        "--gin",
        action="append",
        default=[],
        metavar="FILE",
        help="Gin file, found relative to the working directory or in gin/; may be given several times, later ones win",
    )
    parser.add_argument(
        "--gin_param",
        action="append",
        default=[],
        metavar="'NAME=VALUE'",
        help="overrides one value, such as 'steps=200' or 'strategy=\"cpu\"'; may be given several times",
    )
    parser.add_argument("--run_dir", metavar="DIR", help="where the run lives: configuration, checkpoints, metrics")
    parser.add_argument("--mode", choices=MODES, default="train", help="what to do (default: train)")
    checkpoint = parser.add_mutually_exclusive_group()
    checkpoint.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="evaluate, predict: the checkpoint of this step instead of the newest; replay: the step to run again",
    )
    checkpoint.add_argument(
        "--best",
        action="store_true",
        help="evaluate, predict, export: the best checkpoint by run.best_metric instead of the newest",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="predict: a file with a text a line, or of the kind that a classifier was trained on (.tsv, .csv, .jsonl)",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="predict: the answers as JSON lines, or as a table (.tsv, .csv) where the task has one; export: the folder",
    )
    parser.add_argument(
        "--top_k",
        type=int,
        metavar="K",
        help="predict: answers for each mask, or likeliest classes (default: 5; in files of --output all classes)",
    )
    parser.add_argument(
        "--format",
        choices=EXPORT_FORMATS,
        default="saved_model",
        help="export: a SavedModel to serve, or weights for other programs (default: saved_model)",
    )
    parser.add_argument("--measure", action="store_true", help="plan: run a few steps to estimate the time")
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="predict: texts; with [MASK] in them for a pretrained model"
    )
    return parser


def _configuration(arguments):
    """Returns the resolved configuration: of the gin files, or of the run directory if none is given."""
    files = list(arguments.gin)
    if not files:
        own = storage.join(arguments.run_dir, "config.gin") if arguments.run_dir else None
        if own is None or not storage.exists(own):
            raise InputError(
                "no configuration: give --gin FILE (such as --gin quickstart.gin), or the --run_dir of a run that was "
                "started before"
            )
        files = [own]
    return load_config(files, arguments.gin_param, configurables=CONFIGURABLES)


def run_program(arguments):
    """Does what the command line says.

    Args:
        arguments: what `_parser` returned.

    Raises:
        TrainerError: with a message for a person.
    """
    if not arguments.run_dir and arguments.mode != "plan":
        raise InputError("--run_dir is missing: give the folder in which the run lives or shall live")
    if arguments.texts and arguments.mode != "predict":
        raise InputError(f"{arguments.texts[0]!r} is not understood: only --mode predict takes texts")
    if arguments.best and arguments.mode not in ("evaluate", "predict", "export"):
        raise InputError(f"--best is for --mode evaluate, predict and export, not {arguments.mode}")
    config = _configuration(arguments)
    # Keras is imported here, after everything that can be said without it.
    from trainer import modes

    modes.run_mode(arguments, config)


def main(argv=None):
    """Runs the program; returns the exit code.

    Args:
        argv: arguments of the command line without the program's name; those of the process if None.
    """
    arguments = _parser().parse_args(argv)
    try:
        run_program(arguments)
    except TrainerError as error:
        sys.stdout.flush()
        label = "stopped" if error.exit_code == 75 else "error"
        print(f"{label}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; start it again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0
