"""Runs the trials of a sweep: starts them in the places there are, watches them, and writes down what becomes of each."""

import contextlib
import dataclasses
import os
import signal
import sys
import time

from launch.exit_codes import FINISHED as CODE_FINISHED
from launch.exit_codes import STORAGE, WRONG_INPUT, describe, worth_restarting
from launch.processes import Command, Workers
from launch.run_files import is_remote
from launch.sweep import jobs, logged
from launch.sweep.devices import Slot
from launch.sweep.ledger import FAILED, FINISHED, PRUNED, RUNNING, STOPPED, SUBMITTED, WAITING, Trial
from launch.sweep.trials import LOCAL, SLURM, TPU, Run

_POLL_SECONDS = 0.1
_LOOK_SECONDS, _LOOK_REMOTE_SECONDS = 1.0, 30.0
# A trial's launcher ends it after the grace time; this is for the launcher itself. That of a TPU deletes the machine.
_SPARE_SECONDS = {LOCAL: 30.0, SLURM: 30.0, TPU: 900.0}
_ASK_SECONDS = 5.0  # between two questions whether a job is still in a cluster
_SUBMISSIONS = 4  # at a time: the machine that submits is shared with others


def to_run(trials, retry_failed=False):
    """Returns those of a list of trials that have something left to do.

    One that failed is run again if its exit code says that this may help, or if all are to be.
    """
    return [
        trial
        for trial in trials
        if trial.state in (WAITING, STOPPED)
        or (trial.state == FAILED and (retry_failed or worth_restarting(trial.code) or trial.code == STORAGE))
    ]


def recover(ledger, plan):
    """Settles what was running when the sweep was killed; returns the trials whose job may still be in a cluster.

    A trial whose run has finished meanwhile is finished; any other goes on when it is started again.

    Args:
        ledger: `Ledger`.
        plan: `Plan`.
    """
    still_there = []
    for trial in ledger.trials.values():
        if trial.state not in (RUNNING, SUBMITTED):
            continue
        run = Run(plan, trial)
        run.update()
        if (run.status or {}).get("state") == "finished":
            ledger.append("end", trial=trial.number, state=FINISHED, code=CODE_FINISHED)
        elif trial.to_be_pruned:
            ledger.append("end", trial=trial.number, state=PRUNED)
        elif plan.via == SLURM and jobs.is_queued(plan, trial) is not False:
            still_there.append(trial)
        else:
            ledger.append("end", trial=trial.number, state=STOPPED)
    return still_there


@dataclasses.dataclass
class Active:
    """A trial that runs.

    Attributes:
        trial: `Trial`.
        run: its `Run`.
        slot: its `Slot`.
        workers: the `Workers` of its launcher; None once its job is in a cluster.
        log_bytes: how long its log was before.
        began: monotonic time of its start.
        asked_at: monotonic time at which it was last asked whether its job is still in the cluster.
    """

    trial: Trial
    run: Run
    slot: Slot
    workers: Workers | None
    log_bytes: int
    began: float
    asked_at: float = 0.0


class Runner:
    """Runs trials until none is left, or until it is asked to stop.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP go on to the trials, which save and stop; the sweep can be continued then. No process
    of a trial is left when this returns, nor when this process is killed.

    Args:
        ledger: `Ledger`.
        plan: `Plan`.
        slots: list of `Slot`: as many trials run at a time.
        source: has `take()`, which returns the next `Trial` or None if there is none now; `waiting()`, the number of those
            to come; `put_back(trial)`, for one that has to run again; and `gives_up(run)`, whether to stop a run early.
        runs: {number: `Run`} of all trials; kept up to date.
        display: `launch.sweep.display.Display`.
        max_failures: after so many failed trials no more are started; None for no limit.
    """

    def __init__(self, ledger, plan, slots, source, runs, display, max_failures=None):
        self._ledger, self._plan, self._source = ledger, plan, source
        self._runs, self._display, self._max_failures = runs, display, max_failures
        self._free = list(slots)
        self._active = []
        self._failures = 0
        self._looked_at = self._asked_at = 0.0
        self._deadline = None
        self._submitted_again = set()

    def run(self, submitted=()):
        """Runs the trials; returns the signals that asked it to stop.

        Args:
            submitted: trials whose jobs are in a cluster already.
        """
        for trial in submitted:
            self._free = self._free[1:]
            self._adopt(trial, Slot())
        with _signals() as received:
            forwarded = 0
            try:
                while True:
                    for number in received[forwarded:]:
                        forwarded += 1
                        self._stop(number, first=forwarded == 1)
                    self._collect(bool(received))
                    if not received:
                        self._start_more()
                    self._look()
                    if not self._active and (received or self._gave_up or self._source.waiting() == 0):
                        return received
                    time.sleep(_POLL_SECONDS)
            finally:
                for active in self._active:
                    if active.workers is not None:
                        active.workers.close()

    @property
    def _gave_up(self):
        return self._max_failures is not None and self._failures >= self._max_failures

    def _start_more(self):
        while self._free and not self._gave_up:
            if self._plan.via == SLURM and sum(one.workers is not None for one in self._active) >= _SUBMISSIONS:
                return
            trial = self._source.take()
            if trial is None:
                return
            slot = self._free.pop(0)
            if self._plan.via == SLURM and trial.starts and jobs.is_queued(self._plan, trial):
                self._ledger.append("start", trial=trial.number, via=SLURM)
                self._adopt(trial, slot)  # its job has not ended since it was stopped
            else:
                self._start(trial, slot)

    def _adopt(self, trial, slot):
        """Waits for a job that is in a cluster already."""
        self._active.append(Active(trial, self._runs[trial.number], slot, None, 0, time.monotonic()))

    def _start(self, trial, slot):
        plan = self._plan
        log = plan.log(trial)
        log_bytes = os.path.getsize(log) if os.path.exists(log) else 0
        cores = ",".join(map(str, slot.cores))
        keeping = (sys.executable, logged.__file__, log, plan.lock(trial), cores)
        self._ledger.append("start", trial=trial.number, via=plan.via)
        run = self._runs.setdefault(trial.number, Run(plan, trial))
        command = Command((*keeping, *plan.command(trial)), slot.environment)
        workers = Workers([command], grace_seconds=plan.grace_seconds + _SPARE_SECONDS[plan.via])
        self._active.append(Active(trial, run, slot, workers, log_bytes, time.monotonic()))
        self._display.note(f"{trial.name}: started{f' on {slot}' if str(slot) else ''}")

    def _collect(self, stopping):
        """Takes note of the trials that have ended."""
        late = self._deadline is not None and time.monotonic() > self._deadline
        for active in list(self._active):
            if active.workers is None:
                if stopping:
                    self._end(active, STOPPED)
                continue
            (code,) = active.workers.codes()
            if code is None and not late:
                continue
            active.workers.close()
            (code,) = active.workers.codes()
            self._ended(active, code, stopping)

    def _ended(self, active, code, stopping):
        active.run.update()
        if stopping and self._plan.via == SLURM:
            jobs.cancel(self._plan, active.trial)  # it may have been submitted
        if code == CODE_FINISHED:
            if self._plan.via == SLURM and (active.run.status or {}).get("state") != "finished":
                active.workers = None
                self._ledger.append("submitted", trial=active.trial.number)
                self._display.note(f"{active.trial.name}: submitted")
            else:
                self._end(active, FINISHED, code)
        elif active.trial.to_be_pruned and worth_restarting(code):
            self._end(active, PRUNED, code)
        elif stopping and worth_restarting(code):
            self._end(active, STOPPED, code)
        else:
            self._end(active, FAILED, code, active.run.error(active.log_bytes))

    def _end(self, active, state, code=None, error=None):
        trial = active.trial
        seconds = round(time.monotonic() - active.began, 1)
        self._ledger.append("end", trial=trial.number, state=state, code=code, error=error, seconds=seconds)
        self._active.remove(active)
        self._free.append(active.slot)
        if state != FAILED:
            words = {FINISHED: "finished", PRUNED: "given up by the search", STOPPED: "stopped; goes on with the sweep"}
            self._display.ended(active.run, words[state])
            return
        self._failures += 1
        reason = "its configuration is wrong" if code == WRONG_INPUT else "failed"
        how = f" ({describe(code)})" if code is not None else ""
        self._display.ended(active.run, f"{reason}{how}: {error or 'it said nothing'}", is_failure=True)
        if self._gave_up:
            self._display.note(f"{self._failures} trials failed (--max_failures): no more are started")

    def _look(self):
        """Reads what the running trials have written, once in a while."""
        now = time.monotonic()
        pause = _LOOK_REMOTE_SECONDS if is_remote(self._plan.trials_dir) else _LOOK_SECONDS
        if now - self._looked_at < pause:
            return
        self._looked_at = now
        for active in list(self._active):
            has_news = active.run.update()
            if active.workers is None:
                self._look_at_job(active)
            if active in self._active and has_news and not active.trial.to_be_pruned:
                self._consider(active)
        self._ask_for_jobs()
        self._display.update(self._active, self._source.waiting())

    def _consider(self, active):
        """Stops a trial that the search gives up."""
        if not self._source.gives_up(active.run):
            return
        self._ledger.append("prune", trial=active.trial.number)
        if active.workers is not None:
            active.workers.send(self._signal(signal.SIGTERM))
        else:
            jobs.cancel(self._plan, active.trial)
            self._end(active, PRUNED)

    def _look_at_job(self, active):
        """Sees in a run's status whether the job of a cluster has finished."""
        if (active.run.status or {}).get("state") == "finished":
            self._end(active, FINISHED, CODE_FINISHED)

    def _ask_for_jobs(self):
        """Asks once in a while, of one job after another, whether it is still in the cluster."""
        submitted = [active for active in self._active if active.workers is None]
        if not submitted or time.monotonic() - self._asked_at < _ASK_SECONDS:
            return
        active = min(submitted, key=lambda one: one.asked_at)
        queued = jobs.is_queued(self._plan, active.trial)
        active.asked_at = self._asked_at = time.monotonic()
        active.run.update()
        if queued is not False:
            return
        trial, code = active.trial, jobs.last_code(self._plan, active.trial)
        status = active.run.status or {}
        if status.get("state") == "finished":
            self._end(active, FINISHED, CODE_FINISHED)
        elif trial.number not in self._submitted_again and (code is None or worth_restarting(code)):
            self._submitted_again.add(trial.number)
            self._end(active, STOPPED, code)
            self._source.put_back(trial)
        else:
            self._end(active, FAILED, code, status.get("last_error") or "its job has ended before the run had")

    def _stop(self, number, first):
        if first:
            self._deadline = time.monotonic() + self._plan.grace_seconds + _SPARE_SECONDS[self._plan.via]
            self._display.note(f"{signal.Signals(number).name}: the running trials save and stop")
        for active in self._active:
            if active.workers is None:
                if first:
                    jobs.cancel(self._plan, active.trial)
            elif first or self._plan.via == LOCAL:
                active.workers.send(self._signal(number))

    def _signal(self, number):
        """Returns the signal that lets a trial save and stop: the launcher of a TPU deletes the machine only on SIGINT."""
        return signal.SIGINT if self._plan.via == TPU else number


@contextlib.contextmanager
def _signals():
    """Notes the signals that ask this process to stop; yields the list of their numbers."""
    received = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Listed:
    """Gives the trials of a list one after another, and lets each run to its end."""

    def __init__(self, trials):
        self._trials = list(trials)

    def take(self):
        """Returns the next trial, or None."""
        return self._trials.pop(0) if self._trials else None

    def waiting(self):
        """Returns how many are to come."""
        return len(self._trials)

    def put_back(self, trial):
        """Takes a trial that has to run again."""
        self._trials.insert(0, trial)

    def gives_up(self, _):
        """Returns False: no run is stopped early."""
        return False
