"""docs/weights.md: its program runs, its options and types are those there are."""

import pathlib
import re
import subprocess
import sys

import numpy as np
from small_weights import HEADS, small_source

from tools import convert_weights
from trainer.weights import hugging_face
from trainer.weights.writing import write_weights

ROOT = pathlib.Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")


def test_the_program_loads_weights_as_the_guide_says(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    source = small_source()
    write_weights(source, str(tmp_path / "bert"), "hugging_face")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    loaded = [name for name in source.names if name.startswith(("encoder/", "masked_language_model/"))]
    assert finished.stdout.splitlines() == [
        f"Hugging Face, bert 2 {sorted((*HEADS, 'encoder'))}",
        f"{len(loaded)} ()",
        "loaded   encoder/embeddings/word_embeddings/embeddings <- bert.embeddings.word_embeddings.weight (padded)",
    ]
    assert np.size(source.read(loaded[0])) > 0


def test_options_and_types_in_the_guide_are_there():
    options = set(re.findall(r"`--(\w+)", GUIDE)) | set(re.findall(r" --(\w+)", GUIDE))
    known = {option.lstrip("-") for action in convert_weights.parser()._actions for option in action.option_strings}
    assert options - {"mode", "gin", "gin_param", "run_dir", "format"} <= known
    assert known - options <= {"h", "help", "config", "all", "seed"}
    (table,) = re.findall(r"^\| Hugging Face's \|.*?\n\n", GUIDE, re.DOTALL | re.MULTILINE)
    named = {name for row in table.strip().splitlines()[2:] for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named == set(hugging_face.SCHEMES) | set(hugging_face._ALIASES)
