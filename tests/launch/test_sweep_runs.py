"""Sweeps with real processes: a small program stands in for the trainer, all the rest is what people run."""

import csv
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest
from sweep_process import DEADLINE_SECONDS, ROOT, STAND_IN, Sweep, eventually, interrupt, made_by_hand

from launch.sweep import __main__ as command_line
from launch.sweep import running, trials
from launch.sweep.devices import share_out
from launch.sweep.ledger import FAILED, FINISHED, PRUNED, RUNNING, STOPPED, WAITING, Ledger

GOLDEN = pathlib.Path(__file__).parent / "golden"
RATES = ("--grid", "learning_rate=[1e-5, 1e-4, 1e-3]")


@pytest.fixture
def sweep(tmp_path):
    """A sweep in an empty folder; no process that works there is left."""
    made = Sweep(tmp_path)
    yield made
    left = made.processes()
    for process in left:
        process.kill()
    assert not left


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_combination_runs_once_as_an_ordinary_run_with_its_values(sweep):
    output = sweep.run(*RATES, "--seeds", "0,1")
    assert sweep.completions() == dict.fromkeys(range(1, 7), 1)
    trial = sweep.ledger().trials[4]
    assert trial.name == "004-learning_rate=1e-4-seed=1"
    log = (sweep.path / "trials" / trial.name / "logs" / "sweep.log").read_text()
    assert log.startswith("--- started ")
    first = rows(sweep.path / "leaderboard.csv")[0]
    assert (first["rank"], first["learning_rate"], first["finished"], first["best_trial"]) == ("1", "1e-4", "2", "3")
    assert "004-learning_rate=1e-4-seed=1: finished; eval accuracy" in output
    assert "by last eval accuracy, greatest first" in output


def test_same_command_again_runs_nothing_and_more_values_run_alone(sweep):
    sweep.run(*RATES)
    assert "0 trials to run" in sweep.run(*RATES)
    assert "1 trials to run" in sweep.run("--grid", "learning_rate=[3e-4, 0.001, 1e-5]")  # the same texts or not
    assert sweep.completions() == {1: 1, 2: 1, 3: 1, 4: 1}
    assert sweep.ledger().trials[4].name == "004-learning_rate=3e-4"
    again = sweep.command(["-m", "launch.sweep", "--run_dir", "sweep", "--seeds", "1"], code=2)
    assert "without --gin files the sweep goes on as it was asked for before" in again
    elsewhere = sweep.run("--seeds", "0", "--trials_dir", "elsewhere", code=2)
    assert "the trials of this sweep lie in sweep/trials" in elsewhere
    sweep.command(["-m", "launch.sweep", "--run_dir", "sweep"])  # goes on with what was asked for last
    assert len(rows(sweep.path / "trials.csv")) == 4


def test_another_base_configuration_is_refused_with_the_difference_and_changes_nothing(sweep):
    sweep.run(*RATES, "--gin_param", "steps=2", "--gin_param", "strategy='cpu'")
    before = (sweep.path / "ledger.jsonl").read_bytes()
    output = sweep.run(*RATES, "--gin_param", "steps=3", code=2)
    assert "--gin_param steps: was 2, is 3" in output and "strategy" not in output
    (sweep.folder / "base.gin").write_text("# a comment\nsteps = 9\ninclude 'other.gin'\n")
    assert "there is no gin file other.gin" in sweep.run(*RATES, "--gin_param", "steps=2", code=2)
    (sweep.folder / "other.gin").write_text("x = 1\n")
    output = sweep.run(*RATES, "--gin_param", "steps=2", code=2)
    assert "base.gin has changed:\n      -steps = 4\n      +steps = 9" in output
    assert (sweep.path / "ledger.jsonl").read_bytes() == before
    (sweep.folder / "base.gin").write_text("# another comment\n\nsteps = 4  \n")
    sweep.run(*RATES, "--gin_param", "steps=2.0", code=2)
    sweep.run(*RATES, "--gin_param", "steps=1", "--gin_param", "steps = 2")  # the last one wins


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "nothing varies"),
        (["--seeds", "0", "--gin_param", "seed=1"], "seed varies, but a --gin_param sets it, too"),
        (["--seeds", "0", "--mode", "evaluate"], "--mode evaluate: a sweep trains"),
        (["--seeds", "0", "--parallel", "0"], "--parallel 0: at least 1"),
        (["--seeds", "0", "--via", "tpu"], "give --trials_dir gs://"),
        (["--seeds", "0", "--gin", "pretrian.gin"], "there is no gin file pretrian.gin; did you mean pretrain.gin?"),
        (["--seeds", "0", "--gin_param", "steps"], "'steps': write NAME="),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(sweep, arguments, expected):
    assert expected in sweep.run(*arguments, code=2)
    assert not sweep.path.exists()


def test_failures_are_told_counted_and_do_not_stop_the_others(sweep):
    acts = ("--grid", "act=['fail', 'wrong', 'kill', '']")
    output = sweep.run(*acts, "--max_restarts", "1", code=70)
    assert sweep.states() == {1: FAILED, 2: FAILED, 3: FINISHED, 4: FINISHED}
    assert "001-act=fail: failed (exit code 70: training failed): the loss is not finite" in output
    assert "002-act=wrong: its configuration is wrong" in output and "act is wrong,\n  see --gin_param" in output
    assert len(sweep.lives()[3]) == 2  # killed, and started again by its launcher
    trials_csv = rows(sweep.path / "trials.csv")
    assert [row["exit_code"] for row in trials_csv] == ["70", "2", "0", "0"]
    assert trials_csv[0]["error"] == "the loss is not finite"
    status = sweep.verb("status")
    assert "2 finished, 2 failed; no process runs it" in status and "001-act=fail: the loss is not finite" in status
    sweep.run(*acts, code=70)
    assert [len(lives) for lives in sweep.lives().values()] == [1, 0, 2, 1]  # these failures are final
    sweep.run(*acts, "--retry_failed", code=70)
    assert [len(lives) for lives in sweep.lives().values()] == [2, 0, 2, 1]


def test_configuration_that_is_wrong_everywhere_is_the_sweeps_exit_code(sweep):
    sweep.run("--seeds", "0,1", "--gin_param", "act='wrong'", code=2)


def test_too_many_failures_end_the_sweep_and_it_goes_on_later(sweep):
    sweep.run("--seeds", "0,1,2,3", "--gin_param", "act='fail'", "--max_failures", "2", code=70)
    assert sweep.states() == {1: FAILED, 2: FAILED, 3: WAITING, 4: WAITING}


def test_trial_that_diverges_is_finished_and_comes_last(sweep):
    sweep.run("--grid", "act=['diverge', '']", "--metric", "loss")
    best, worst = rows(sweep.path / "leaderboard.csv")
    assert (best["act"], worst["act"], worst["mean"]) == ("''", "'diverge'", "nan")


def test_killed_sweep_leaves_no_process_and_goes_on_with_every_trial_once(sweep):
    arguments = (*RATES, "--seeds", "0,1", "--gin_param", "pause=0.05", "--parallel", "2")
    with sweep.started(*arguments) as process:
        eventually(lambda: len([life for life in sweep.lives().values() if life]) >= 3, "a third trial")
        process.kill()
        process.wait()
        assert RUNNING in sweep.states().values()
        output = sweep.run(*arguments)  # at once: it waits for the trials that still save
    assert sweep.completions() == dict.fromkeys(range(1, 7), 1)
    assert set(sweep.states().values()) == {FINISHED}
    assert "6 there before" in output
    assert all(len(lives) <= 2 for lives in sweep.lives().values())
    trial = rows(sweep.path / "trials.csv")[0]
    assert (trial["step"], trial["total"], trial["state"]) == ("4", "4", "finished")


def test_sweep_killed_after_any_event_goes_on_with_every_trial_once(sweep):
    arguments = ("--seeds", "0,1,2", "--gin_param", "steps=2", "--parallel", "2")
    ledger = sweep.path / "ledger.jsonl"
    count_events = lambda: ledger.read_bytes().count(b"\n") if ledger.exists() else 0
    ended = False
    for life in range(1, 40):
        before = count_events()
        with sweep.started(*arguments) as process:
            eventually(lambda: count_events() >= before + life or process.poll() is not None, "an event")  # noqa: B023
            process.kill()
            ended = process.wait() == 0
        if ended:
            break
    assert ended and life > 3
    assert set(sweep.states().values()) == {FINISHED}
    assert sweep.completions() == {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_sweep_lets_its_trials_save_and_goes_on(sweep, number):
    arguments = ("--seeds", "0,1,2", "--gin_param", "pause=0.1", "--gin_param", "steps=6", "--parallel", "2")
    with sweep.started(*arguments) as process:
        eventually(lambda: [len(life) for life in sweep.lives().values()][:2] == [1, 1], "two trials")
        code, output = interrupt(process, number)
        assert code == 75, output
        assert not sweep.processes()
    assert "stopped; the same command goes on" in output
    assert sweep.states() == {1: STOPPED, 2: STOPPED, 3: WAITING}
    sweep.run(*arguments)
    assert sweep.completions() == {1: 1, 2: 1, 3: 1}
    lives = sweep.lives()
    assert [len(life) for life in lives.values()] == [2, 2, 1]
    assert int(lives[1][1][0]) > 0  # from where it had saved


def test_trial_that_is_given_up_saves_and_ends_and_is_not_run_again(sweep, monkeypatch):
    class Strict(running.Listed):
        def gives_up(self, run):
            return len(run.metrics.records("eval")) >= 2

    monkeypatch.setattr(command_line, "Listed", Strict)
    monkeypatch.chdir(sweep.folder)
    for name in ("PYTHONPATH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, sweep.environment[name])
    arguments = ["--gin", "base.gin", "--run_dir", "sweep", "--seeds", "0", "--gin_param", "steps=5000"]
    arguments += ["--gin_param", "pause=0.05"]
    assert command_line.main(arguments) == 0
    assert sweep.states() == {1: PRUNED} and sweep.completions() == {1: 0}
    assert rows(sweep.path / "trials.csv")[0]["exit_code"] == "75"
    assert rows(sweep.path / "leaderboard.csv")[0]["mean"] == ""
    assert command_line.main(arguments) == 0
    assert len(sweep.lives()[1]) == 1


def test_what_a_killed_sweep_left_is_settled(tmp_path):
    runs = made_by_hand(tmp_path, [([("seed", str(seed))], FINISHED, []) for seed in range(3)])
    ledger, plan = Ledger(tmp_path), trials.Plan(str(tmp_path), str(tmp_path / "trials"), (), ())
    for number in (1, 2, 3):
        ledger.append("start", trial=number, via="local")
    ledger.append("prune", trial=2)
    for run, state in zip(runs, ("finished", "preempted", "training"), strict=True):
        pathlib.Path(run.run_dir, "status.json").write_text(f'{{"state": "{state}", "step": 1, "total": 2}}')
    assert running.recover(ledger, plan) == []
    assert [trial.state for trial in ledger.trials.values()] == [FINISHED, PRUNED, STOPPED]
    assert [trial.number for trial in running.to_run(ledger.trials.values())] == [3]


def test_second_process_is_refused_and_stop_ends_the_first(sweep):
    arguments = ("--seeds", "0,1", "--gin_param", "pause=0.1", "--gin_param", "steps=500")
    assert "no process runs a sweep" in sweep.verb("stop", code=2)
    with sweep.started(*arguments) as process:
        eventually(lambda: any(sweep.lives().values()), "a trial")
        refused = sweep.run(*arguments, code=2)
        assert f"process {process.pid} on" in refused and "launch/sweep.sh stop" in refused
        assert "1 running, 1 waiting; process" in sweep.verb("status")
        assert "it has stopped" in sweep.verb("stop")
        assert process.wait(timeout=DEADLINE_SECONDS) == 75
        assert not sweep.processes()
    assert "1 waiting, 1 stopped; no process runs it" in sweep.verb("status")
    assert "there is no sweep" in sweep.command(["-m", "launch.sweep", "status", "--run_dir", "other"], code=2)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors can be given out on Linux alone")
def test_trials_at_a_time_share_the_processors(sweep):
    cores = sorted(os.sched_getaffinity(0))
    sweep.run("--seeds", "0,1,2,3", "--parallel", "2", "--gin_param", "pause=0.05")
    used = {life[0][2] for life in sweep.lives().values()}
    assert used == ({str(cores[: len(cores) // 2]), str(cores[len(cores) // 2 :])} if len(cores) > 1 else {str(cores)})
    assert {life[0][1] for life in sweep.lives().values()} == {""}


def test_trials_are_pinned_to_gpus_and_several_gpus_of_one_trial_are_one_job(sweep):
    sweep.environment["CUDA_VISIBLE_DEVICES"] = "4,5,6,7"
    base = ("--gin_param", "pause=0.1")
    sweep.run(*base, "--seeds", "0,1,2,3,4,5,6,7")
    assert {life[0][1] for life in sweep.lives().values()} == {"4", "5", "6", "7"}
    sweep.run(*base, "--seeds", "8", "--parallel", "2")
    assert sorted(life[1] for life in sweep.lives()[9]) == ["4", "5"]


def test_gpus_and_processors_are_shared_out_evenly():
    gpus = lambda slots: [slot.gpus for slot in slots]
    assert gpus(share_out(None, ["0", "1"], [0])) == [("0",), ("1",)]
    assert gpus(share_out(1, ["0", "1"], [0])) == [("0", "1")]
    assert gpus(share_out(4, ["0", "1"], [0])) == [("0",), ("1",), ("0",), ("1",)]
    with pytest.raises(
        ValueError, match="--parallel 3 does not share out the 4 GPUs of this machine evenly: use 1, 2, 4"
    ):
        share_out(3, ["0", "1", "2", "3"], [0])
    assert [slot.cores for slot in share_out(None, [], [0, 1, 2])] == [()]
    assert [slot.cores for slot in share_out(2, [], [0, 1, 2])] == [(0,), (1, 2)]
    assert [slot.cores for slot in share_out(3, [], [4, 6])] == [(4,), (6,), (4,)]


def golden(output):
    """Returns the output of a dry run without what differs between machines."""
    output = output.replace(sys.executable, "PYTHON").replace(ROOT, "REPOSITORY")
    return re.sub(r"on processor \d+(, processor \d+)*", "on PROCESSORS", output)


BASE = ("--gin", "finetune_classification.gin", "--gin_param", 'data="it\'s.tsv"', "--run_dir", "sweeps/lr")
TPU = ("--accelerator", "v5litepod-8", "--zone", "us-west1-c", "--max_hours", "2")
DRY_RUNS = {
    "grid": (*BASE, *RATES, "--grid", "run.optimizer=[@adamw(), @lamb()]", "--seeds", "0,1"),
    "zip": (*BASE, "--zip", "steps=[100, 200]", "--zip", "global_batch=[32, 16]", "--parallel", "2", "--max_restarts", "1"),
    "random": (*BASE, "--random", "learning_rate=loguniform(1e-5, 1e-3)", "--trials", "3"),
    "slurm": (*BASE, "--seeds", "0,1", "--via", "slurm", "--gpus_per_node", "1"),
    "tpu": (*BASE, "--seeds", "0,1", "--via", "tpu", "--trials_dir", "gs://bucket/lr", *TPU),
}  # fmt: skip


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_run_prints_the_commands_of_the_reviewed_file_and_makes_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    assert command_line.main([*DRY_RUNS[name], "--dry_run"]) == 0
    assert golden(capsys.readouterr().out) == (GOLDEN / f"sweep_{name}.txt").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["slurm", "tpu"])
def test_launchers_of_clusters_understand_the_commands(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line.main([*DRY_RUNS[name], "--dry_run"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([*command, "--dry_run"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cost" in done.stdout and "seed=1" in done.stdout


def test_commands_of_a_dry_run_are_those_that_run(sweep):
    arguments = ("--grid", "learning_rate=[1e-5, 1e-4]", "--grid", 'act=["it\'s", "$(touch owned) `x`; \\\\"]')
    lines = [line for line in sweep.run(*arguments, "--dry_run").splitlines() if not line.startswith("#")]
    sweep.run(*arguments)
    assert len(lines) == 4 and not (sweep.folder / "owned").exists()
    for line, trial in zip(lines, sweep.ledger().trials.values(), strict=True):
        words = shlex.split(line)
        assert words[words.index("--run_dir") + 1] == f"sweep/trials/{trial.name}"
        for name, text in trial.parameters:
            assert f"{name}={text}" in words
    assert "# trial 1, " in sweep.run(*arguments, "--dry_run") and "finished" in sweep.run(*arguments, "--dry_run")


STUB = """#!/usr/bin/env bash
# Stands in for launch/slurm.sh: submits (starts in the background) and returns at once.
printf '%s\\n' "$*" >> calls
if [[ "$1" == run ]]; then
  run_dir="$(sed 's/.*--run_dir \\([^ ]*\\).*/\\1/' <<< "$*")"
  setsid "$PYTHON" stand_in/trainer/__main__.py "${@:7}" >/dev/null 2>&1 &
  mkdir -p "$run_dir" && echo $! > "$run_dir/job"
elif [[ "$1" == stop ]]; then
  kill "$(cat "$3/job")"
elif [[ ! -e "$3/job" ]]; then
  exit 2
elif kill -0 "$(cat "$3/job")" 2>/dev/null && [[ "$(ps -o stat= -p "$(cat "$3/job")")" != Z* ]]; then
  echo "job 7 RUNNING"
else
  echo "job 7 has ended: it is not in Slurm's queue"
fi
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Puts a stub in the place of launch/slurm.sh, in a folder with the stand-in for the trainer."""
    made = Sweep(tmp_path)
    (tmp_path / "slurm.sh").write_text(STUB)
    (tmp_path / "slurm.sh").chmod(0o755)
    monkeypatch.setattr(trials, "_LAUNCH", str(tmp_path))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.chdir(tmp_path)
    yield made
    left = made.processes()
    for process in left:
        if process.pid != os.getpid():
            process.kill()


def calls_of(slurm, verb):
    """Returns the command lines that the stub was called with."""
    return [line for line in (slurm.folder / "calls").read_text().splitlines() if line.startswith(verb)]


def in_a_cluster(slurm, arguments):
    """Starts a sweep over the stub as a process."""
    code = (
        "import sys; from launch.sweep import __main__, trials\n"
        "trials._LAUNCH = sys.argv[1]; sys.exit(__main__.main(sys.argv[2:]))"
    )
    environment = {**slurm.environment, "PYTHON": sys.executable}
    command = [sys.executable, "-c", code, str(slurm.folder), *arguments]
    return subprocess.Popen(command, cwd=slurm.folder, env=environment)


def test_jobs_of_slurm_are_submitted_and_waited_for(slurm):
    arguments = [
        "--gin",
        "base.gin",
        "--run_dir",
        "sweep",
        "--seeds",
        "0,1",
        "--via",
        "slurm",
        "--gin_param",
        "pause=0.1",
    ]
    assert command_line.main(arguments) == 0
    calls = sorted(calls_of(slurm, "run"))
    assert len(calls) == 2
    assert calls[0] == (
        "run --yes --max_restarts 3 --grace_seconds 120 --gin base.gin --gin_param pause=0.1 --gin_param seed=0 "
        "--run_dir sweep/trials/001-seed=0 --mode train"
    )
    assert slurm.states() == {1: FINISHED, 2: FINISHED}
    events = (slurm.path / "ledger.jsonl").read_text()
    assert events.count('"submitted"') == 2


def test_sweep_over_slurm_that_was_killed_waits_for_its_jobs_and_submits_none_twice(slurm):
    arguments = [
        "--gin",
        "base.gin",
        "--run_dir",
        "sweep",
        "--seeds",
        "0,1",
        "--via",
        "slurm",
        "--gin_param",
        "pause=0.5",
    ]
    with in_a_cluster(slurm, arguments) as process:
        path = slurm.path / "ledger.jsonl"
        eventually(lambda: path.exists() and path.read_text().count('"submitted"') == 2, "both jobs")
        process.kill()
    assert command_line.main(arguments) == 0
    assert len(calls_of(slurm, "run")) == 2
    assert slurm.completions() == {1: 1, 2: 1}


def test_stopping_a_sweep_over_slurm_stops_its_jobs(slurm):
    arguments = ["--gin", "base.gin", "--run_dir", "sweep", "--seeds", "0", "--via", "slurm"]
    arguments += ["--gin_param", "pause=0.1", "--gin_param", "steps=600"]
    with in_a_cluster(slurm, arguments) as process:
        eventually(lambda: any(slurm.lives().values()), "the job")
        path = slurm.path / "ledger.jsonl"
        eventually(lambda: '"submitted"' in path.read_text(), "the job")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=DEADLINE_SECONDS) == 75
    assert calls_of(slurm, "stop") == ["stop --run_dir sweep/trials/001-seed=0"]
    assert slurm.states() == {1: STOPPED}


def test_job_that_is_lost_is_submitted_again_once(slurm, monkeypatch):
    monkeypatch.setattr(running, "_ASK_SECONDS", 0.0)
    arguments = ["--gin", "base.gin", "--run_dir", "sweep", "--grid", "act=['kill', 'wrong']", "--via", "slurm"]
    assert command_line.main(arguments) == 70
    assert slurm.states() == {1: FINISHED, 2: FAILED}
    assert len(calls_of(slurm, "run")) == 4
    assert slurm.ledger().trials[2].error == "its job has ended before the run had"


TPU_STUB = """#!/usr/bin/env bash
# Stands in for launch/tpu.sh: runs the trainer where gs:// paths are folders of this one, and follows it.
printf '%s\\n' "$*" >> calls
trap 'echo INT >> signals; kill -INT "$trainer"' INT
trap 'echo TERM >> signals' TERM
"$PYTHON" stand_in/trainer/__main__.py "${@/gs:\\/\\//./}" &
trainer=$!
until wait "$trainer"; do code=$?; kill -0 "$trainer" 2>/dev/null || exit "$code"; done
"""

GCLOUD_STUB = """#!/usr/bin/env bash
[[ "$1 $2" == "storage cat" ]] && exec cat -- "${3/gs:\\/\\//./}" 2>/dev/null
"""


@pytest.fixture
def tpu(slurm, monkeypatch):
    """Puts stubs in the places of launch/tpu.sh and gcloud; the stand-in for the trainer takes what launchers take."""
    path = slurm.folder / "stand_in" / "trainer" / "__main__.py"
    path.write_text(STAND_IN.replace("parser.parse_args()", "parser.parse_known_args()[0]"))
    for name, text in (("tpu.sh", TPU_STUB), ("gcloud", GCLOUD_STUB)):
        (slurm.folder / name).write_text(text)
        (slurm.folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    return slurm


TPU_SWEEP = ["--gin", "base.gin", "--run_dir", "sweep", "--via", "tpu", "--trials_dir", "gs://bucket/lr", *TPU]


def test_trials_on_tpus_are_read_from_their_bucket(tpu):
    assert command_line.main([*TPU_SWEEP, "--seeds", "0,1", "--parallel", "2"]) == 2  # nobody to ask
    assert not (tpu.folder / "calls").exists()
    assert command_line.main([*TPU_SWEEP, "--seeds", "0,1", "--parallel", "2", "--yes"]) == 0
    calls = sorted(calls_of(tpu, "run"))
    assert len(calls) == 2 and "--run_dir gs://bucket/lr/001-seed=0 --mode train --accelerator v5litepod-8" in calls[0]
    first = rows(tpu.path / "leaderboard.csv")[0]
    assert (first["finished"], first["best_trial"]) == ("2", "1") and float(first["standard_deviation"]) > 0
    assert (tpu.folder / "bucket" / "lr" / "001-seed=0" / "completed").exists()
    assert command_line.main(["report", "--run_dir", "sweep"]) == 0


def test_stopping_a_sweep_on_tpus_lets_their_launchers_delete_the_machines(tpu):
    arguments = [*TPU_SWEEP, "--seeds", "0", "--yes", "--gin_param", "steps=600", "--gin_param", "pause=0.1"]
    with in_a_cluster(tpu, arguments) as process:
        eventually(lambda: (tpu.folder / "bucket" / "lr" / "001-seed=0" / "lives").exists(), "the trial")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=DEADLINE_SECONDS) == 75
    assert (tpu.folder / "signals").read_text() == "INT\n"  # on SIGTERM they would leave the machines
    assert tpu.states() == {1: STOPPED}


def test_sweep_script_works_from_any_folder(tmp_path):
    command = [os.path.join(ROOT, "launch", "sweep.sh")]
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    options = ["--gin", "quickstart.gin", "--run_dir", "s", "--seeds", "0", "--dry_run"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert shlex.split(done.stdout.splitlines()[-1])[1:3] == ["-m", "launch.local"]
    for verb in ([], ["status"], ["report"], ["stop"]):
        done = subprocess.run(
            [*command, *verb, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and "launch/sweep.sh" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_sweeps_load_neither_tensorflow_nor_gin_nor_optuna():
    names = ("tensorflow", "gin", "keras", "optuna", "tensorboard")
    code = f"import launch.sweep.__main__, sys; sys.exit(any(name in sys.modules for name in {names}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert "import tensorflow" not in STAND_IN


def test_results_are_written_without_tensorflow(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests/launch')\n"
        "from sweep_process import made_by_hand, evaluations; from launch.sweep.results import report\n"
        "report(sys.argv[1], made_by_hand(sys.argv[1], [((('a', '1'),), 'finished', evaluations(loss=[1.0]))]), {})\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'gin', 'keras')))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    assert Ledger(tmp_path).trials[1].state == FINISHED and (tmp_path / "report.html").exists()
