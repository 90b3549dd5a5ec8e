"""The script in docs/models.md does what it says it prints, and its tables name what is there."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

from trainer.models.architecture import EncoderConfig

ROOT = pathlib.Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
(SCRIPT,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
(PRINTED,) = re.findall(r"^prints\n\n```\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_layers_work_in_a_keras_model_as_the_guide_says(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-2:] == PRINTED.splitlines()[-2:]
    accuracies = re.findall(r"accuracy: (\S+)", finished.stdout)
    assert len(accuracies) == 2 and float(accuracies[-1]) > 0.99


def test_the_table_of_models_names_all_gin_files():
    rows = [line.split("|") for line in GUIDE.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[3])} - {"share_layers"}
    shipped = {path.stem for path in (ROOT / "gin" / "models").glob("*.gin")}
    assert named == shipped


def test_the_guide_names_only_options_there_are():
    fields = {field.name for field in dataclasses.fields(EncoderConfig)}
    named = re.findall(r"`(\w+)=[^`]*`", GUIDE) + re.findall(r"encoder\.(\w+)", GUIDE)
    assert set(named) - {"condition"} <= fields
