"""Searching with Optuna: what is proposed depends on what is known alone, and bad trials are given up."""

import json
import math
import subprocess
import sys

import pytest
from sweep_process import ROOT, Sweep, evaluations, eventually, made_by_hand

from launch.sweep.ledger import FINISHED, PRUNED, Ledger
from launch.sweep.search import Searched
from launch.sweep.space import make_space
from launch.sweep.trials import Plan, Run, trial_name

SEARCH = ("--search", "learning_rate=loguniform(1e-7, 1e-1)")


@pytest.fixture
def sweep(tmp_path):
    """A sweep in an empty folder."""
    pytest.importorskip("optuna")
    made = Sweep(tmp_path)
    yield made
    assert not made.processes()


def searched(folder, space, unfinished=(), metric=None):
    """Returns a `Searched` over the ledger in a folder, and the ledger."""
    pytest.importorskip("optuna")
    ledger = Ledger(folder)
    plan = Plan(str(folder), f"{folder}/trials", (), ())
    runs = {number: Run(plan, trial) for number, trial in ledger.trials.items()}
    for run in runs.values():
        run.update()

    def add(parameters):
        trial = ledger.add(parameters, lambda number: trial_name(number, parameters))
        runs[trial.number] = Run(plan, trial)
        return trial

    wanted = {"metric": metric, "kind": None, "goal": None, "take": None}
    return Searched(space, ledger, runs, wanted, add, list(unfinished)), ledger


def bowl(rate):
    """Returns a loss that is least at a rate of 1e-3."""
    return (math.log10(rate) + 3) ** 2


def test_search_finds_what_is_good_where_chance_does_not(tmp_path):
    space = make_space(search=["learning_rate=loguniform(1e-7, 1e1)", "name=choice('good', @bad(), (1, 2))"], trials=40)
    made_by_hand(tmp_path, [])
    rates = []
    for _ in range(40):
        search, ledger = searched(tmp_path, space)
        trial = search.take()
        parameters = dict(trial.parameters)
        rate = float(parameters["learning_rate"])
        loss = bowl(rate) + (0 if parameters["name"] == "'good'" else 2)
        path = tmp_path / "trials" / trial.name
        path.mkdir(parents=True)
        path.joinpath("metrics.jsonl").write_text(json.dumps({"step": 1, "kind": "eval", "loss": loss}) + "\n")
        ledger.append("start", trial=trial.number, via="local")
        ledger.append("end", trial=trial.number, state=FINISHED, code=0)
        ledger.close()
        rates.append((rate, parameters["name"]))
    late = rates[20:]
    assert sum(1 for rate, name in late if bowl(rate) < 1 and name == "'good'") >= 5  # by chance 20 / 4 / 3
    search, ledger = searched(tmp_path, space)
    assert search.take() is None and search.waiting() == 0
    assert len({trial.key for trial in ledger.trials.values()}) == 40


def test_proposal_is_a_function_of_what_is_known(tmp_path):
    space = make_space(search=["learning_rate=loguniform(1e-7, 1e1)"], trials=20)
    records = [(rate, evaluations(loss=[bowl(rate)])) for rate in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e-7)]
    made_by_hand(tmp_path, [([("learning_rate", str(rate))], FINISHED, own) for rate, own in records])
    proposals = {searched(tmp_path, space)[0].propose() for _ in range(3)}
    assert len(proposals) == 1
    other = make_space(search=["learning_rate=loguniform(1e-7, 1e1)"], trials=20, random_seed=1)
    assert searched(tmp_path, other)[0].propose() not in proposals


def test_small_space_is_searched_without_repeating(tmp_path):
    space = make_space(search=["layers=integer(1, 6)"], trials=6)
    made_by_hand(tmp_path, [])
    search, ledger = searched(tmp_path, space)
    assert {search.take().parameters[0][1] for _ in range(6)} == {"1", "2", "3", "4", "5", "6"}
    assert search.take() is None and len(ledger.trials) == 6


def test_trial_worse_than_half_of_the_others_at_its_step_is_given_up(tmp_path):
    space = make_space(search=["learning_rate=loguniform(1e-7, 1e1)"], trials=20)
    known = [([("learning_rate", f"1e-{n}")], FINISHED, evaluations(loss=[n, n / 2, n / 4])) for n in range(1, 7)]
    running = [
        ([("learning_rate", "2e-2")], "running", evaluations(loss=[9.0, 8.0])),
        ([("learning_rate", "3e-2")], "running", evaluations(loss=[9.0, 0.1])),
    ]
    bad, good = made_by_hand(tmp_path, known + running)[-2:]
    search, _ = searched(tmp_path, space)
    assert search.gives_up(bad) and not search.gives_up(good)


def test_metric_that_no_trial_has_logged_yet_is_waited_for_and_told_once_one_has_finished(tmp_path):
    space = make_space(search=["learning_rate=loguniform(1e-7, 1e1)"], trials=20)
    begun = [{"step": 1, "kind": "train", "loss": 3.0}]
    (run,) = made_by_hand(tmp_path / "a", [([("learning_rate", "1e-1")], "running", begun)])
    search, _ = searched(tmp_path / "a", space, metric="accuracy")
    assert not search.gives_up(run) and search.propose()
    made_by_hand(tmp_path / "b", [([("learning_rate", "1e-1")], FINISHED, begun)])
    with pytest.raises(ValueError, match="--metric accuracy: the trials log loss"):
        searched(tmp_path / "b", space, metric="accuracy")[0].propose()


def test_points_with_seeds_count_by_their_mean_and_are_completed_first(tmp_path):
    space = make_space(search=["learning_rate=loguniform(1e-7, 1e1)"], seeds="0,1", trials=3)
    made_by_hand(
        tmp_path,
        [
            ([("learning_rate", "1e-3"), ("seed", "0")], FINISHED, evaluations(loss=[1.0])),
            ([("learning_rate", "1e-3"), ("seed", "1")], FINISHED, evaluations(loss=[2.0])),
            ([("learning_rate", "1e-2"), ("seed", "0")], FINISHED, evaluations(loss=[9.0])),
        ],
    )
    search, ledger = searched(tmp_path, space)
    assert search.waiting() == 1 + 2  # a seed was not yet written down when the sweep was killed, and a point
    assert search.take().parameters == (("learning_rate", "1e-2"), ("seed", "1"))
    import optuna

    study, _ = search._study(optuna)
    assert [trial.value for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE] == [1.5]
    assert not search.gives_up(Run(Plan(str(tmp_path), f"{tmp_path}/trials", (), ()), ledger.trials[1]))
    values = {search.take().parameters for _ in range(2)}
    assert len({point[0] for point in values}) == 1 and {point[1][1] for point in values} == {"0", "1"}


def test_sweep_searches_prunes_and_goes_on_after_a_kill(sweep):
    arguments = (*SEARCH, "--trials", "10", "--gin_param", "steps=20", "--gin_param", "pause=0.05")
    arguments += ("--parallel", "2", "--max_restarts", "0")
    with sweep.started(*arguments) as process:
        eventually(lambda: len(sweep.states()) >= 6, "some trials")
        process.kill()
        process.wait()
        sweep.run(*arguments)
    states = sweep.states()
    assert len(states) == 10 and set(states.values()) <= {FINISHED, PRUNED}
    completed = sweep.completions()
    assert all(completed[number] == (state == FINISHED) for number, state in states.items())
    best = (sweep.path / "leaderboard.csv").read_text().splitlines()[1].split(",")
    assert 1e-6 < float(best[1]) < 1e-2
    sweep.run(*SEARCH, "--trials", "11", *arguments[4:])
    assert len(sweep.states()) == 11


def test_search_without_optuna_says_how_to_install_it(tmp_path):
    sweep = Sweep(tmp_path)
    (tmp_path / "stand_in" / "optuna.py").write_text("raise ImportError('must not be imported')")
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'optuna' else find(name, *rest)\n"
        "from launch.sweep.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--gin", "base.gin", "--run_dir", "sweep", *SEARCH]
    done = subprocess.run(command, cwd=tmp_path, env=sweep.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--search needs Optuna, which is not installed" in done.stderr
    assert "-m pip install 'bert-trainer[sweep]'" in done.stderr
    assert not sweep.path.exists() and ROOT
