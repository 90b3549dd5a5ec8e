"""docs/sweeps.md: its options are those there are, and its commands are understood."""

import os
import pathlib
import re
import shlex

import pytest
from sweep_process import ROOT

from launch.sweep import __main__ as command_line
from launch.sweep import results
from launch.sweep.ledger import FILE
from launch.sweep.ranges import _KINDS

GUIDE = (pathlib.Path(ROOT) / "docs" / "sweeps.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_options_and_files_in_the_guide_are_there():
    options = set(re.findall(r"--(\w+)", GUIDE))
    known = {option.lstrip("-") for action in command_line._parser()._actions for option in action.option_strings}
    elsewhere = {"mode", "logdir", "gpus_per_node", "partition", "accelerator", "zone", "max_hours", "max_cost", "help"}
    assert options - elsewhere <= known
    assert known - options <= {"h", "help", "yes", "mode"}
    assert {results.LEADERBOARD, results.TRIALS, results.PAGE, FILE} <= set(re.findall(r"`([\w./]+)`", GUIDE))
    assert set(_KINDS) == set(re.findall(r"`(\w+)\(a, b", GUIDE))


@pytest.mark.parametrize("command", COMMANDS, ids=[f"command {number}" for number in range(len(COMMANDS))])
def test_commands_in_the_guide_are_understood(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if command[0] == "...":
        command = ["--gin", "quickstart.gin", "--run_dir", "sweeps/a", "--seeds", "0,1", *command[1:]]
    assert command_line.main([*command, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("# trial ") >= 2
    assert os.listdir(tmp_path) == []
