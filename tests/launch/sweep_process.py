"""Sweeps in tests: a small program in place of the trainer, the real command line around it, and sweeps made by hand."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil

from launch.sweep.ledger import Ledger
from launch.sweep.trials import Plan, Run, trial_name

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEADLINE_SECONDS = 120

# Does what the trainer's command line does, as far as launchers see it: metrics, status, saving on SIGTERM, going on, exit
# codes. The macros of its configuration: steps, learning_rate, seed, pause, and `act`, what goes wrong.
STAND_IN = """
import argparse, json, math, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--gin", action="append")
parser.add_argument("--gin_param", action="append", default=[])
parser.add_argument("--run_dir")
parser.add_argument("--mode")
options = parser.parse_args()
parameters = dict(text.split("=", 1) for text in options.gin_param)
steps, seed = int(parameters.get("steps", 4)), int(parameters.get("seed", 0))
rate, pause = float(parameters.get("learning_rate", 1e-4)), float(parameters.get("pause", 0))
act = parameters.get("act", "''").strip("'")
asked = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: asked.append(1))
if act == "wrong":
    print("error: act is wrong,\\n  see --gin_param", file=sys.stderr)
    sys.exit(2)
os.makedirs(options.run_dir, exist_ok=True)
path = lambda name: os.path.join(options.run_dir, name)

def status(state, step, error=None):
    with open(path("status.tmp"), "w") as file:
        json.dump({"state": state, "step": step, "total": steps, "last_error": error, "seconds_per_step": pause}, file)
    os.replace(path("status.tmp"), path("status.json"))

done = int(open(path("saved")).read()) if os.path.exists(path("saved")) else 0
with open(path("lives"), "a") as file:
    file.write(f"{done} {os.environ.get('CUDA_VISIBLE_DEVICES')} {sorted(os.sched_getaffinity(0))} {os.getpid()}\\n")
log = open(path("metrics.jsonl"), "a")
for step in range(done + 1, steps + 1):
    loss = abs(math.log10(rate) + 4) + 1 / step + seed / 100
    records = [{"step": step, "kind": "train", "loss": loss, "learning_rate": rate, "examples_per_second": 1.0}]
    if step % 2 == 0 or step == steps:
        shown = "NaN" if act == "diverge" else loss + 0.5
        records.append({"step": step, "kind": "eval", "loss": shown, "accuracy": 1 / (1 + loss), "evaluation_seconds": 1.0})
    log.write("".join(json.dumps(record) + "\\n" for record in records))
    log.flush()
    if act == "fail" and step == 3:
        status("failed", step, "the loss is not finite")
        sys.exit(70)
    if act == "kill" and step == 3 and done < 2:
        open(path("saved"), "w").write("2")
        log.write('{"step": 4, "ki')
        log.flush()
        os.kill(os.getpid(), 9)
    status("training", step)
    open(path("saved.tmp"), "w").write(str(step))
    os.replace(path("saved.tmp"), path("saved"))
    if asked:
        status("preempted", step, "SIGTERM received")
        sys.exit(75)
    time.sleep(pause)
if done < steps:
    open(path("completed"), "a").write("once\\n")
status("finished", steps)
"""


def prepare(folder):
    """Writes the stand-in and a gin file `base.gin` into a folder; returns the environment that uses them."""
    package = folder / "stand_in" / "trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(STAND_IN)
    (folder / "base.gin").write_text("steps = 4\n")
    paths = f"{folder / 'stand_in'}{os.pathsep}{ROOT}"
    return {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "TF_CONFIG": ""}


class Sweep:
    """The command line of sweeps in a folder of its own, with the stand-in for the trainer.

    Args:
        folder: the working directory, empty.
        run_dir: the folder of the sweep, in it.
    """

    def __init__(self, folder, run_dir="sweep"):
        self.folder, self.run_dir = folder, run_dir
        self.environment = prepare(folder)
        self.path = folder / run_dir

    def arguments(self, *arguments):
        """Returns the arguments of Python for `run` with the usual gin file."""
        return ["-m", "launch.sweep", "--gin", "base.gin", "--run_dir", self.run_dir, *arguments]

    def run(self, *arguments, code=0):
        """Runs the sweep to its end and checks the exit code; returns all that it wrote."""
        return self.command(self.arguments(*arguments), code)

    def verb(self, verb, *arguments, code=0):
        """Runs `status`, `report` or `stop`."""
        return self.command(["-m", "launch.sweep", verb, "--run_dir", self.run_dir, *arguments], code)

    def command(self, arguments, code=0):
        """Runs Python with arguments, and checks the exit code; returns all that it wrote."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        assert done.returncode == code, f"exit code {done.returncode} instead of {code}:\n{done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def started(self, *arguments):
        """Starts the sweep as a process; kills it at the end, and waits for what it leaves."""
        process = subprocess.Popen(
            [sys.executable, *self.arguments(*arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
            eventually(lambda: not self.processes(), "the end of all processes")

    def processes(self):
        """Returns the processes that work in this folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.folder):
                    found.append(process)
        return found

    def ledger(self):
        """Returns the `Ledger`, read."""
        return Ledger(self.path)

    def states(self):
        """Returns {number: state} of the trials."""
        return {number: trial.state for number, trial in self.ledger().trials.items()}

    def lives(self):
        """Returns {number of a trial: list of [step it went on from, GPUs, processors] of each of its processes}."""
        found = {}
        for number, trial in self.ledger().trials.items():
            path = self.path / "trials" / trial.name / "lives"
            lines = path.read_text().splitlines() if path.exists() else []
            found[number] = [line.rpartition(" ")[0].split(" ", 2) for line in lines]
        return found

    def completions(self):
        """Returns {number of a trial: how often it was completed}."""
        paths = {
            number: self.path / "trials" / trial.name / "completed" for number, trial in self.ledger().trials.items()
        }
        return {n: len(path.read_text().splitlines()) if path.exists() else 0 for n, path in paths.items()}


def eventually(condition, what, seconds=DEADLINE_SECONDS):
    """Waits for a condition; returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


def interrupt(process, number=signal.SIGINT):
    """Sends a signal and waits for the end; returns (exit code, what it wrote)."""
    process.send_signal(number)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, output


def made_by_hand(folder, trials):
    """Makes a sweep without running anything.

    Args:
        folder: of the sweep.
        trials: list of (parameters, state, records of the metrics).

    Returns:
        list of `Run`, read.
    """
    ledger = Ledger(folder)
    ledger.append("request", request={})
    plan = Plan(str(folder), os.path.join(folder, "trials"), (), ())
    runs = []
    for parameters, state, records in trials:
        trial = ledger.add(tuple(parameters), lambda number, own=tuple(parameters): trial_name(number, own))
        run_dir = plan.run_dir(trial)
        os.makedirs(run_dir)
        with open(os.path.join(run_dir, "metrics.jsonl"), "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        step = max((record["step"] for record in records), default=0)
        with open(os.path.join(run_dir, "status.json"), "w") as file:
            json.dump({"state": state, "step": step, "total": step, "last_error": None}, file)
        ledger.append("start", trial=trial.number, via="local")
        error = "it failed" if state == "failed" else None
        ledger.append("end", trial=trial.number, state=state, code=70 if error else 0, error=error, seconds=60.0)
        runs.append(Run(plan, trial))
        runs[-1].update()
    ledger.close()
    return runs


def evaluations(**values):
    """Returns the records of evaluations at steps 10, 20, ...: each keyword a metric and its list of values."""
    return [
        {"step": 10 * (index + 1), "kind": "eval", **dict(zip(values, row, strict=True))}
        for index, row in enumerate(zip(*values.values(), strict=True))
    ]
