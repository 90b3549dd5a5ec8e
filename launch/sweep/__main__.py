"""Runs a trainer many times with other Gin parameters: `launch/sweep.sh --gin quickstart.gin --grid 'seed=[0, 1, 2]'`.

    launch/sweep.sh --gin finetune_classification.gin --gin_param 'data="train.tsv"' --run_dir sweeps/lr
        --grid 'learning_rate=[1e-5, 3e-5]' --seeds 0,1,2               every combination
        --zip 'global_batch=[16, 32]' --zip 'steps=[400, 200]'          taken together: two combinations
        --random 'learning_rate=loguniform(1e-5, 1e-3)' --trials 12     drawn
        --search 'learning_rate=loguniform(1e-5, 1e-3)' --trials 30     searched by Optuna

Each trial is an ordinary run in its own folder under trials/. The same command again goes on with the sweep; with more
values it grows. Commands: run (the default), status, report (writes the tables and the page again), stop. Options that are
not listed here go to the trainer, or to the launcher of --via, as they are.

RANGE: uniform(a, b), loguniform(a, b), integer(a, b), loginteger(a, b) or choice(a, b, ...).
"""

import contextlib
import signal
import sys

from launch.command_line import add_job_options, confirm, make_parser, parse_job, say, split_verb
from launch.exit_codes import FAILED as CODE_FAILED
from launch.exit_codes import FINISHED, PREEMPTED, STORAGE, WRONG_INPUT
from launch.run_files import is_remote
from launch.sweep import search
from launch.sweep.control import VERBS, add_metric_options, look_after
from launch.sweep.display import Display
from launch.sweep.dry_run import dry_run
from launch.sweep.ledger import FAILED, Ledger, SweepLock
from launch.sweep.request import plan_of, request_of, slots_of, space_of, wanted_of
from launch.sweep.results import report_if_possible
from launch.sweep.running import Listed, Runner, recover, to_run
from launch.sweep.space import DEFAULT_TRIALS
from launch.sweep.trials import LAUNCHERS, TPU, Run, trial_name

_SCRIPT = "launch/sweep.sh"


def _parser():
    parser = make_parser(f"{_SCRIPT} [run]", __doc__)
    add_job_options(parser)
    add = parser.add_argument_group("what varies").add_argument
    repeated = {"action": "append", "default": []}
    add("--grid", **repeated, metavar="NAME=[...]", help="values to combine with all others (repeatable)")
    add("--zip", **repeated, metavar="NAME=[...]", help="values that all --zip take together (repeatable)")
    add("--seeds", metavar="0,1,2", help="values of the macro seed, over which the leaderboard takes the mean")
    add("--random", **repeated, metavar="NAME=RANGE", help="values to draw (repeatable)")
    add("--search", **repeated, metavar="NAME=RANGE", help="values to search for with Optuna (repeatable)")
    add("--trials", type=int, metavar="N", help=f"draws, or points of the search; default: {DEFAULT_TRIALS}")
    add("--random_seed", type=int, metavar="N", help="of --random and --search; default: 0")
    add("--no_pruning", action="store_true", help="--search: let each trial run to its end")
    add_metric_options(parser.add_argument_group("what counts").add_argument)
    add = parser.add_argument_group("how").add_argument
    add("--via", choices=LAUNCHERS, help="this machine (default), or a cluster's launcher for each trial")
    add("--parallel", type=int, metavar="N", help="trials at a time; default: one per GPU, one on CPU")
    add(
        "--trials_dir",
        metavar="DIR",
        help="where the run directories lie, local or gs://; default: trials in --run_dir",
    )
    add("--retry_failed", action="store_true", help="run trials again that failed for good")
    add("--max_failures", type=int, metavar="N", help="after N failed trials start no more; default: no limit")
    add("--grace_seconds", type=float, default=120, metavar="S", help="for a trial to save and stop; default: 120")
    return parser


def main(arguments=None):
    """Runs the command line; returns the exit code."""
    verb, arguments = split_verb(arguments, ("run", *VERBS))
    try:
        return look_after(verb, arguments, _SCRIPT) if verb in VERBS else _run(arguments)
    except ValueError as error:
        say(error)
        return WRONG_INPUT
    except KeyboardInterrupt:  # while nothing runs yet, or any more
        say("interrupted; the same command goes on")
        return 128 + signal.SIGINT
    except OSError as error:
        say(f"storage failed: {error}")
        return STORAGE


def _run(arguments):
    parser = _parser()
    options, job = parse_job(parser, arguments)
    if job.mode != "train":
        parser.error(f"--mode {job.mode}: a sweep trains")
    if options.run_dir is None:
        parser.error("--run_dir DIR is needed: the folder of the sweep")
    if is_remote(job.run_dir):
        parser.error("--run_dir: the ledger of a sweep lies on this machine; --trials_dir may be gs://")
    for name in ("parallel", "max_failures"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: at least 1")
    if options.dry_run:
        dry_run(options, job)
        return FINISHED
    _prepare(options, job, Ledger(job.run_dir))  # refuses before anything is made
    with SweepLock(job.run_dir), contextlib.closing(Ledger(job.run_dir)) as ledger:
        return _sweep(options, job, ledger)


def _prepare(options, job, ledger):
    """Returns (what is asked for, `Space`, `Plan`, list of `Slot`); raises ValueError with a message for a person."""
    request = request_of(options, job, ledger.request)
    space, plan = space_of(request), plan_of(options, request, job.run_dir)
    if space.search:
        search.check_installed()
    return request, space, plan, slots_of(options, plan, space)


def _sweep(options, job, ledger):
    """Runs the trials of a sweep, whose folder is held by this process; returns the exit code."""
    request, space, plan, slots = _prepare(options, job, ledger)
    wanted = wanted_of(options)
    if request != ledger.request:
        ledger.append("request", request=request)
    submitted = recover(ledger, plan)
    runs = {}

    def read(trial):
        runs[trial.number] = Run(plan, trial)
        runs[trial.number].update()
        return trial

    def add(parameters):
        return read(ledger.add(parameters, lambda number: trial_name(number, parameters)))

    known = {read(trial).key: trial for trial in ledger.trials.values()}
    if space.search:
        unfinished = to_run(ledger.trials.values(), options.retry_failed)
        source = search.Searched(space, ledger, runs, wanted, add, unfinished, not options.no_pruning)
    else:
        asked = [known.get(key) or add(point) for key, point in space.points().items()]
        source = Listed(to_run(asked, options.retry_failed))
    say(f"{source.waiting()} trials to run in {job.run_dir}, {len(known)} there before")
    if plan.via == TPU and source.waiting() and not confirm("Each trial makes a TPU. Go on?", options):
        return WRONG_INPUT
    with Display(job.run_dir, runs, wanted, len(slots)) as display:
        received = Runner(ledger, plan, slots, source, runs, display, options.max_failures).run(submitted)
    report_if_possible(job.run_dir, list(runs.values()), wanted)
    if received:
        say("stopped; the same command goes on with the sweep")
        return PREEMPTED
    trials = list(ledger.trials.values()) if space.search else asked
    return _exit_code(job.run_dir, [trial for trial in trials if trial.state == FAILED], source.waiting())


def _exit_code(folder, failed, left):
    if failed:
        say(
            f"{len(failed)} trials failed: `{_SCRIPT} status --run_dir {folder}` says why; --retry_failed runs them again"
        )
        return WRONG_INPUT if all(trial.code == WRONG_INPUT for trial in failed) else CODE_FAILED
    assert not left, "the runner ends when nothing is left"
    return FINISHED


if __name__ == "__main__":
    sys.exit(main())
