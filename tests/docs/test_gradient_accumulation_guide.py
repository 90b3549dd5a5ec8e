"""The two scripts at the head of docs/gradient_accumulation.md do what it says they print."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "gradient_accumulation.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
PRINTED = re.findall(r"^prints\n\n```\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def run(script):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_accumulation_of_keras_raises_as_the_guide_says():
    finished = run(SCRIPTS[0])
    assert "RuntimeError: Exception encountered when calling Cond.call()" in PRINTED[0]
    assert finished.returncode == 1
    for line in PRINTED[0].splitlines()[2:]:
        assert line.removesuffix(" ...") in finished.stderr


def test_the_same_with_the_wrapper_trains_as_the_guide_says():
    ours, keras = (set(script.splitlines()) for script in SCRIPTS[1::-1])
    assert len(ours - keras) == 2  # an import, and the optimizer
    finished = run(SCRIPTS[1])
    assert finished.returncode == 0, finished.stderr
    printed = finished.stdout.splitlines()
    assert printed[-1] == PRINTED[1].splitlines()[-1]
    losses = [float(line.rpartition("loss: ")[2]) for line in printed if "loss: " in line]
    first, last = (float(loss) for loss in re.findall(r"loss: (\S+)", PRINTED[1]))
    assert abs(losses[0] - first) < 1e-2 * first and losses[-1] < 2 * last
