"""A sweep of twelve real pretrainings of a tiny model, killed in the middle and continued.

Slow: each trial is a process that loads TensorFlow. One test, so that the sweep runs once.
"""

import csv
import json
import os
import signal
import subprocess
import sys

import chromium
import numpy as np
import psutil
import pytest
from end_to_end.small_corpora import TINY_GIN, prepare_small_corpus
from sweep_process import ROOT, eventually

from launch.sweep.ledger import FINISHED, Ledger
from trainer.training.run_directory import MEASURED_KEYS, read_metrics

DEADLINE_SECONDS = 900
RATES = ("5e-3", "1e-3", "2e-4", "1e1")  # the last one learns nothing
SEEDS = ("0", "1", "2")


def tiny_gin(folder):
    """Writes a gin file, ten steps of a tiny model on a small prepared corpus, into a folder; returns its path."""
    folder.mkdir()
    gin = TINY_GIN.format(data=prepare_small_corpus(folder)).replace("steps = 20", "steps = 10")
    path = folder / "tiny.gin"
    path.write_text(
        gin.replace("eval_every = 10", "eval_every = 5").replace("checkpoint_every = 5", "checkpoint_every = 2")
    )
    return path


def command(gin, folder):
    """Returns the command of the sweep as people give it, and its environment."""
    script = [os.path.join(ROOT, "launch", "sweep.sh"), "--gin", str(gin), "--run_dir", str(folder)]
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TF_XLA_FLAGS", None)  # the tests' own
    varied = ["--grid", f"learning_rate=[{', '.join(RATES)}]", "--seeds", ",".join(SEEDS)]
    return [*script, *varied, "--parallel", "2"], environment


def trainers(folder):
    """Returns the processes that train somewhere in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def numbers(run_dir, kind):
    """Returns what a run logged, without what measures the machine."""
    return [
        {name: value for name, value in record.items() if name not in MEASURED_KEYS}
        for record in read_metrics(run_dir)
        if record["kind"] == kind
    ]


def killed_and_continued(gin, folder):
    """Runs the sweep, kills it in the middle, and runs it to its end; returns {number: state} at the kill."""
    arguments, environment = command(gin, folder)

    def states():
        return [trial.state for trial in Ledger(folder).trials.values()]

    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(
                lambda: states().count(FINISHED) >= 4 or process.poll() is not None, "four trials", DEADLINE_SECONDS
            )
            assert process.poll() is None
            running = next(trial for trial in Ledger(folder).trials.values() if trial.state == "running")
            path = folder / "trials" / running.name / "checkpoints"
            eventually(lambda: path.exists() and any(path.rglob("COMMITTED")), "a checkpoint", DEADLINE_SECONDS)
        finally:
            process.send_signal(signal.SIGKILL)
    at_kill = {number: trial.state for number, trial in Ledger(folder).trials.items()}
    done = subprocess.run(
        arguments, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not trainers(folder)
    return at_kill


def every_trial_was_completed_exactly_once(folder, at_kill):
    trials = Ledger(folder).trials
    assert len(trials) == 12 and {trial.state for trial in trials.values()} == {FINISHED}
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    ends = [event["trial"] for event in events if event["event"] == "end" and event["state"] == FINISHED]
    assert sorted(ends) == list(range(1, 13))
    starts = [event["trial"] for event in events if event["event"] == "start"]
    assert {number for number in starts if starts.count(number) > 1} <= {
        n for n, state in at_kill.items() if state == "running"
    }
    assert list(at_kill.values()).count(FINISHED) >= 4 and "running" in at_kill.values()
    for trial in trials.values():
        run_dir = folder / "trials" / trial.name
        assert [record["step"] for record in numbers(run_dir, "train")] == list(range(1, 11))
        assert json.loads((run_dir / "status.json").read_text())["state"] == "finished"
        parameters = dict(trial.parameters)
        config = (run_dir / "config.gin").read_text()
        assert f"seed = {parameters['seed']} " in config


def leaderboard_is_what_the_metrics_files_say(folder):
    values = {rate: [] for rate in RATES}
    for trial in Ledger(folder).trials.values():
        last = numbers(folder / "trials" / trial.name, "eval")[-1]
        assert last["step"] == 10
        values[dict(trial.parameters)["learning_rate"]].append(last["loss"])
    with open(folder / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["learning_rate"] for row in rows] == sorted(RATES, key=lambda rate: np.mean(values[rate]))
    assert rows[0]["learning_rate"] == "5e-3" and rows[-1]["learning_rate"] == "1e1"
    for row in rows:
        own = values[row["learning_rate"]]
        assert len(own) == 3 and row["finished"] == row["trials"] == "3"
        np.testing.assert_allclose(float(row["mean"]), np.mean(own), rtol=1e-12)
        np.testing.assert_allclose(float(row["standard_deviation"]), np.std(own, ddof=1), rtol=1e-9)
    with open(folder / "trials.csv", newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [
            numbers(folder / "trials" / trial.name, "eval")[-1]["loss"] for trial in Ledger(folder).trials.values()
        ]


def trial_that_was_killed_is_equal_to_an_ordinary_run(folder, at_kill, gin, other):
    number = next(number for number, state in at_kill.items() if state == "running")
    trial = Ledger(folder).trials[number]
    arguments = [part for name, text in trial.parameters for part in ("--gin_param", f"{name}={text}")]
    command = [sys.executable, "-m", "trainer", "--gin", str(gin), *arguments, "--run_dir", str(other)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TF_XLA_FLAGS", None)
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=DEADLINE_SECONDS)
    for kind in ("train", "eval"):
        assert numbers(folder / "trials" / trial.name, kind) == numbers(other, kind)


def same_command_again_runs_nothing(folder, gin):
    before = (folder / "ledger.jsonl").read_bytes()
    arguments, environment = command(gin, folder)
    done = subprocess.run(arguments, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0 and "0 trials to run" in done.stderr
    assert (folder / "ledger.jsonl").read_bytes() == before


def page_opens_in_a_browser_without_complaint(folder):
    with chromium.Page(folder / "report.html") as browser:
        assert browser.evaluate("document.querySelectorAll('#parameters path.trial').length") == 12
        assert browser.evaluate("document.querySelectorAll('#leaderboard tbody tr').length") == 4
        assert browser.evaluate("document.querySelector('#leaderboard tbody td:nth-child(2)').textContent") == "5e-3"
        browser.screenshot(folder / "report.png")
        assert browser.complaints == [] and len(browser.requests) == 1


@pytest.mark.slow
def test_sweep_that_is_killed_in_the_middle_comes_out_as_if_nothing_had_happened(tmp_path):
    gin, folder = tiny_gin(tmp_path / "corpus"), tmp_path / "sweeps" / "rates"
    at_kill = killed_and_continued(gin, folder)
    every_trial_was_completed_exactly_once(folder, at_kill)
    leaderboard_is_what_the_metrics_files_say(folder)
    trial_that_was_killed_is_equal_to_an_ordinary_run(folder, at_kill, gin, tmp_path / "other")
    same_command_again_runs_nothing(folder, gin)
    if chromium.EXECUTABLE is not None:
        page_opens_in_a_browser_without_complaint(folder)
