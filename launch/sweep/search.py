"""Searching with Optuna: which parameters to try next, and which trials are not worth going on with.

The study is made anew, in memory, of the ledger and of what the trials logged, whenever it is asked. So it holds nothing
that could be lost, and a sweep that goes on proposes what it would have proposed. Optuna is imported here alone, and only
when a search runs.
"""

import contextlib
import importlib.util
import math
import shlex
import sys
import warnings

from launch.exit_codes import FAILED as TRAINING_FAILED
from launch.sweep.display import objective_of
from launch.sweep.ledger import FAILED, FINISHED, PRUNED
from launch.sweep.space import key_of, without_seeds
from launch.sweep.values import canonical, number

_STARTUP_POINTS = 5  # random ones before the search knows enough; also before anything is given up
_SEED_STEP = 1_000_003  # apart, so that two searches share no point


def check_installed():
    """Raises ValueError, with the command that helps, if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        command = f"{shlex.quote(sys.executable)} -m pip install 'bert-trainer[sweep]'"
        raise ValueError(f"--search needs Optuna, which is not installed. Install: {command} (or pip install optuna)")


class Searched:
    """Gives the trials of a search, each point chosen by what is known then.

    Args:
        space: `Space` with `search`.
        ledger: `Ledger`; its trials outside the space are left alone.
        runs: {number: `Run`}, kept up to date.
        wanted: dict of what was said of the metric, for `launch.sweep.metrics.choose`.
        add: function from a set of parameters to a new `Trial`.
        unfinished: trials of the ledger with something left to do; they come first.
        prunes: whether trials may be given up early; only without seeds.
    """

    def __init__(self, space, ledger, runs, wanted, add, unfinished, prunes=True):
        self._space, self._ledger, self._runs, self._wanted, self._add = space, ledger, runs, wanted, add
        self._combinations = space.combinations()
        self._prunes = prunes and len(self._combinations) == 1
        points = self._points()
        self._queue = [trial for trial in unfinished if self._point_of(trial) in points]
        for point in points.values():  # one whose trials were not all written down before the sweep was killed
            known = {trial.key for trial in point}
            values = without_seeds(point[0].parameters)
            missing = [(*values, *rest) for rest in self._combinations if key_of((*values, *rest)) not in known]
            self._queue += [add(parameters) for parameters in missing]

    def take(self):
        """Returns the next trial, or None if there is none."""
        if not self._queue and self._to_come():
            values = self.propose()
            self._queue += [self._add((*values, *rest)) for rest in self._combinations]
        return self._queue.pop(0) if self._queue else None

    def waiting(self):
        """Returns how many trials are to come."""
        return len(self._queue) + self._to_come() * len(self._combinations)

    def put_back(self, trial):
        """Takes a trial that has to run again."""
        self._queue.insert(0, trial)

    def propose(self):
        """Returns the parameters to try next, as a tuple of (name, text)."""
        optuna = _optuna()
        study, _ = self._study(optuna)
        names = [name for name, _ in self._space.search]
        distributions = {name: _distribution(optuna, range_) for name, range_ in self._space.search}
        known = {self._point_of(trial) for trial in self._ledger.trials.values()}
        values = ()
        for attempt in range(100):  # a range of few values may bring forth what was tried already
            number_of_point = len(self._points())
            with _quietly():
                study.sampler = optuna.samplers.TPESampler(
                    n_startup_trials=_STARTUP_POINTS,
                    constant_liar=True,  # trials that run count as bad, so that two at a time differ
                    seed=(self._space.random_seed * _SEED_STEP + 100 * number_of_point + attempt) % 2**32,
                )
                proposed = study.ask(distributions).params
            values = tuple((name, self._text(name, proposed[name])) for name in names)
            if key_of(values) not in known:
                return values
        return values

    def gives_up(self, run):
        """Returns whether a running trial is worse at its last step than half of the others were there."""
        if not self._prunes:
            return False
        optuna = _optuna()
        study, numbers = self._study(optuna)
        place = numbers.get(run.trial.number)
        if place is None:
            return False
        return optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_POINTS).prune(study, study.trials[place])

    def _study(self, optuna):
        """Returns (a study of all that is known, {number of a trial: its place in the study})."""
        objective = self._objective()
        with _quietly():
            study = optuna.create_study(direction="minimize" if objective is None or objective.less else "maximize")
        distributions = {name: _distribution(optuna, range_) for name, range_ in self._space.search}
        places = {}
        for trials in self._points().values():
            parameters = dict(trials[0].parameters)
            if not all(range_.holds(parameters[name]) for name, range_ in self._space.search):
                continue  # the ranges have become narrower
            for trial in trials:
                places[trial.number] = len(study.trials)
            study.add_trial(
                optuna.trial.create_trial(
                    params={name: self._value(name, parameters[name]) for name, _ in self._space.search},
                    distributions=distributions,
                    **self._outcome(optuna, trials, objective),
                )
            )
        return study, places

    def _objective(self):
        """Returns the `Objective`, None as long as it cannot be known: trials log evaluations after their first steps."""
        try:
            return objective_of(self._runs.values(), self._wanted)
        except ValueError:
            if any(trial.state == FINISHED for trial in self._ledger.trials.values()):
                raise
            return None

    def _outcome(self, optuna, trials, objective):
        """Returns state, value and curve of a point, of which there is a trial for each seed."""
        states = optuna.trial.TrialState
        curve = {}
        if len(trials) == 1 and objective is not None:
            logged = self._runs[trials[0].number].metrics.curve(objective.kind, objective.metric)
            curve = {step: float(value) for step, value in logged}
        worst = math.inf if objective is None or objective.less else -math.inf
        if any(trial.state == FAILED and trial.code == TRAINING_FAILED for trial in trials):
            return {"state": states.COMPLETE, "value": worst, "intermediate_values": curve}  # what to keep away from
        if any(trial.state == FAILED for trial in trials):
            return {"state": states.FAIL, "intermediate_values": curve}
        if any(trial.state == PRUNED for trial in trials):
            return {"state": states.PRUNED, "intermediate_values": curve}
        if any(trial.state != FINISHED for trial in trials) or len(trials) < len(self._combinations):
            return {"state": states.RUNNING, "intermediate_values": curve}
        values = [objective and objective.of(self._runs[trial.number].metrics) for trial in trials]
        if not all(values):
            return {"state": states.FAIL, "intermediate_values": curve}
        mean = sum(point[1] for point in values) / len(values)
        return {
            "state": states.COMPLETE,
            "value": worst if math.isnan(mean) else float(mean),
            "intermediate_values": curve,
        }

    def _points(self):
        """Returns {key of a point: its trials}, in the order in which they were added."""
        names = {name for name, _ in self._space.search}
        points = {}
        for trial in self._ledger.trials.values():
            if {name for name, _ in without_seeds(trial.parameters)} == names:
                points.setdefault(self._point_of(trial), []).append(trial)
        return points

    def _point_of(self, trial):
        return key_of(without_seeds(trial.parameters))

    def _to_come(self):
        return max(0, self._space.trials - len(self._points()))

    def _text(self, name, value):
        range_ = dict(self._space.search)[name]
        return range_.choices[value] if range_.choices else range_.text(value)

    def _value(self, name, text):
        range_ = dict(self._space.search)[name]
        return [*map(canonical, range_.choices)].index(canonical(text)) if range_.choices else number(text)


def _optuna():
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def _quietly():
    """Hides what Optuna says of its own parts that may still change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _distribution(optuna, range_):
    if range_.choices:
        return optuna.distributions.CategoricalDistribution(range(len(range_.choices)))  # texts may be anything
    kind = "IntDistribution" if range_.kind.endswith("integer") else "FloatDistribution"
    return getattr(optuna.distributions, kind)(range_.low, range_.high, log=range_.is_logarithmic)
