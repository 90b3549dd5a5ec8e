"""What every launcher's command line has: the job, where it runs to, how often it is started again, and a look before."""

import argparse
import dataclasses
import os
import re
import shlex
import sys

# What one process does alone, however many the run itself has.
MODES_OF_ONE_PROCESS = ("predict", "export", "plan", "replay")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class TrainerJob:
    """What the trainer is asked to do, wherever it runs.

    Attributes:
        gin: names of gin files.
        gin_param: texts `name=value`.
        run_dir: the run directory, local or `gs://`.
        mode: of the trainer.
        others: more of the trainer's options, as they are.
    """

    gin: tuple
    gin_param: tuple
    run_dir: str
    mode: str = "train"
    others: tuple = ()

    @property
    def sets_strategy(self):
        """Whether the parameters name a strategy for the trainer."""
        return any(re.match(r"\s*strategy\s*=", text) for text in self.gin_param)

    def arguments(self, extra_parameters=()):
        """Returns everything behind `python -m trainer`, as a tuple.

        Args:
            extra_parameters: texts `name=value` that the launcher sets.
        """
        return (
            *(part for name in self.gin for part in ("--gin", name)),
            *(part for text in (*self.gin_param, *extra_parameters) for part in ("--gin_param", text)),
            *("--run_dir", self.run_dir, "--mode", self.mode),
            *self.others,
        )


def make_parser(program, documentation):
    """Returns a parser whose description is the documentation of a launcher's module, without its first line."""
    return argparse.ArgumentParser(
        prog=program,
        description=documentation.partition("\n\n")[2],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_job_options(parser, *, max_restarts=3):
    """Adds the options that all launchers have.

    Args:
        parser: `argparse.ArgumentParser`.
        max_restarts: the default.
    """
    add = parser.add_argument
    add("--gin", action="append", default=[], metavar="FILE", help="a gin file (repeatable); see gin/")
    add("--gin_param", action="append", default=[], metavar="NAME=VALUE", help="overrides a value (repeatable)")
    add("--run_dir", metavar="DIR", help="where the run is kept; default: runs/<names of the gin files>")
    add("--mode", default="train", help="train (default), evaluate, predict, export, plan or replay")
    restarts = f"after preemption or a lost worker; default: {max_restarts}"
    add("--max_restarts", type=not_negative, default=max_restarts, metavar="N", help=restarts)
    add("--dry_run", action="store_true", help="print what would be run and made, run and make nothing")
    add("--yes", action="store_true", help="answer every question with yes")


def parse_job(parser, arguments):
    """Parses a command line with the options of `add_job_options`.

    Args:
        parser: `argparse.ArgumentParser`.
        arguments: list of strings; None for those of this process.

    Returns:
        (options, `TrainerJob`): what the parser does not know goes to the trainer.
    """
    options, others = parser.parse_known_args(arguments)
    if not options.gin and options.run_dir is None:
        parser.error("--gin FILE is needed, for example --gin quickstart.gin")
    run_dir = options.run_dir or default_run_dir(options.gin)
    job = TrainerJob(tuple(options.gin), tuple(options.gin_param), run_dir, options.mode, tuple(others))
    return options, job


def split_verb(arguments, verbs):
    """Returns (verb, the arguments behind it): `run` where the first argument is no verb.

    Args:
        arguments: list of strings; None for those of this process.
        verbs: names of the launcher's commands.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return (arguments[0], arguments[1:]) if arguments[:1] and arguments[0] in verbs else ("run", arguments)


def add_run_options(parser):
    """Adds the options by which the other commands find a run."""
    add = parser.add_argument
    add("--gin", action="append", default=[], metavar="FILE", help="finds the default run directory, as for run")
    add("--run_dir", metavar="DIR", help="the run directory")


def parse_run(parser, arguments):
    """Parses a command line with the options of `add_run_options`; returns (options, the run directory)."""
    options = parser.parse_args(arguments)
    if not options.gin and options.run_dir is None:
        parser.error("--run_dir DIR is needed, or the --gin FILE of the run")
    return options, options.run_dir or default_run_dir(options.gin)


def default_run_dir(gin_files):
    """Returns `runs/<names of the gin files>`: the same command finds its run again and goes on with it."""
    names = [os.path.basename(path).removesuffix(".gin") for path in gin_files]
    return os.path.join("runs", "-".join(names))


def check_name(text, what):
    """Returns a name that is fit for a cloud's resource or a job; raises ValueError, with a message for a person.

    Args:
        text: the name: small letters, digits and hyphens, at most 63.
        what: what it names, for the message.
    """
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{what} {text!r}: use small letters, digits and hyphens, at most 63, a letter first and no hyphen last"
        )
    return text


def command_text(arguments, environment=None):
    """Returns a command as a line for a shell, behind the variables that it gets."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return " ".join([*variables, shlex.join(arguments)])


def confirm(question, options):
    """Asks a person; returns whether the answer is yes. Without a terminal to ask, only `--yes` is one."""
    if options.yes:
        return True
    if not sys.stdin.isatty():
        say(f"{question} There is no terminal to answer: give --yes")
        return False
    return input(f"launch: {question} [y/N] ").strip().lower() in ("y", "yes")


def say(text):
    """Tells a person on standard error, if anybody is there."""
    try:
        print(f"launch: {text}", file=sys.stderr, flush=True)
    except OSError:
        """The terminal is gone."""


def positive(text):
    """Returns an integer of at least 1 from an option's text."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def not_negative(text):
    """Returns an integer of at least 0 from an option's text."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number}: at least 0")
    return number
