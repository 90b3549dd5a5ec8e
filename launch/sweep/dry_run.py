"""What a sweep would run and make, told before anything is run or made."""

from launch.command_line import command_text
from launch.sweep import search
from launch.sweep.ledger import FILE, Ledger, Trial
from launch.sweep.request import plan_of, request_of, slots_of, space_of, wanted_of
from launch.sweep.results import LEADERBOARD, PAGE, TRIALS
from launch.sweep.trials import TPU, Run, trial_name


def dry_run(options, job):
    """Prints the command of each trial, behind the variables that it gets."""
    ledger = Ledger(job.run_dir)
    request = request_of(options, job, ledger.request)
    space, plan = space_of(request), plan_of(options, request, job.run_dir)
    slots = slots_of(options, plan, space)
    points = list(space.points().values())
    count = f"{len(points)} trials"
    if space.search:
        search.check_installed()
        runs = {trial.number: Run(plan, trial) for trial in ledger.trials.values()}
        for run in runs.values():
            run.update()
        values = search.Searched(space, ledger, runs, wanted_of(options), lambda _: None, []).propose()
        points = [(*values, *rest) for rest in space.combinations()]
        count = f"{space.trials * len(points)} trials, of which the search proposes {len(points)} now"
    where = ", ".join(dict.fromkeys(str(slot) for slot in slots if str(slot)))
    print(f"# {count}; via {plan.via}, {len(slots)} at a time at most{f', on {where}' if where else ''}")
    print(f"# makes {FILE}, {LEADERBOARD}, {TRIALS}, {PAGE} and hparams/ in {job.run_dir}, runs in {plan.trials_dir}")
    if plan.via == TPU:
        print("# a command below with --dry_run tells what it makes, and what that costs an hour")
    known, number = {trial.key: trial for trial in ledger.trials.values()}, max(ledger.trials, default=0)
    for index, point in enumerate(points):
        trial = Trial(number + 1, trial_name(number + 1, point), point)
        number += trial.key not in known
        trial = known.get(trial.key, trial)
        print(f"# trial {trial.number}, {trial.hash}, {trial.state}")
        print(command_text(plan.command(trial), slots[index % len(slots)].environment))
