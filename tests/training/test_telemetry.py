import io
import re

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)

from trainer.training.progress import Smoothed
from trainer.training.run_directory import RunDirectory, read_metrics
from trainer.training.telemetry import Telemetry


def make_telemetry(path, console=None, **options):
    console = console or Console(file=io.StringIO(), force_terminal=False)
    options = {"total_steps": 600, "batch": 32, "tokens_per_example": 128} | options
    return Telemetry(RunDirectory(path, report=console.print), console=console, **options), console.file


def record(step, **more):
    return {"step": step, "loss": 10.0 / step, "learning_rate": 3e-4, "gradient_norm": 1.5, **more}


def points(path):
    """What people's scripts read and what TensorBoard itself reads: dict of tag -> [(step, value)], from each."""
    for_scripts = EventAccumulator(str(path / "tensorboard")).Reload()
    shown = PluginEventAccumulator(str(path / "tensorboard")).Reload()
    tags = [tag for tag in shown.Tags()["tensors"] if tag != "config"]
    assert all(shown.SummaryMetadata(tag).plugin_data.plugin_name == "scalars" for tag in tags)
    return (
        {tag: [(e.step, e.value) for e in for_scripts.Scalars(tag)] for tag in for_scripts.Tags()["scalars"]},
        {tag: [(e.step, tf.make_ndarray(e.tensor_proto).item()) for e in shown.Tensors(tag)] for tag in tags},
    )


def test_off_a_terminal_each_record_is_a_plain_line(tmp_path):
    telemetry, screen = make_telemetry(tmp_path)
    telemetry.start(0)
    telemetry.train([record(119), record(120, loss=6.1234)], seconds=64 / 812)
    telemetry.close(summary=False)
    assert screen.getvalue() == (
        "step 120/600  loss 6.1234  learning_rate 3.0e-04  812 examples/s  104k tokens/s  left 0:00:19\n"
    )


def test_long_lines_are_not_wrapped(tmp_path):
    telemetry, screen = make_telemetry(tmp_path, Console(file=io.StringIO(), width=20))
    telemetry.note("[x] " + "word " * 50)
    assert screen.getvalue() == "[x] " + "word " * 50 + "\n"


def test_on_a_terminal_there_is_one_living_line_which_leaves_the_cursor_visible(tmp_path):
    telemetry, screen = make_telemetry(
        tmp_path, Console(file=io.StringIO(), force_terminal=True, width=200), num_accumulation_steps=8
    )
    telemetry.start(0)
    telemetry.train([record(120)], seconds=0.04)
    telemetry.state("saving")
    telemetry.note("a line above")
    telemetry.close()
    telemetry.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    for part in ("120/600", "loss 0.0833", "accumulation 8", "800 examples/s", "saving", "a line above", "summary"):
        assert part in text
    assert screen.getvalue().rfind("\x1b[?25h") > screen.getvalue().rfind("\x1b[?25l")


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_terminal_shows_less_but_never_wraps(tmp_path, width):
    telemetry, screen = make_telemetry(
        tmp_path, Console(file=io.StringIO(), force_terminal=True, width=width), num_accumulation_steps=8
    )
    telemetry.start(0)
    telemetry.train([record(120)], seconds=0.04)
    telemetry.close(summary=False)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n").split("\n")
    (last,) = {line.rstrip() for line in lines if "120/600" in line}
    assert len(last) <= width and "…" not in last
    assert "left 0:00:19" in last
    assert not any("examples/s" in line for line in lines if "120/600" not in line)


def test_metrics_have_the_documented_keys_and_keep_every_bit(tmp_path):
    telemetry, _ = make_telemetry(tmp_path)
    telemetry.start(0)
    loss = np.float32(1) / np.float32(3)
    telemetry.train([record(1, loss=loss, mlm_accuracy=0.25)], seconds=2.0)
    telemetry.evaluation(1, {"loss": 5.0, "perplexity": np.exp(5.0)})
    telemetry.close()
    train, evaluation = read_metrics(tmp_path)
    assert train == {
        "step": 1,
        "kind": "train",
        "examples_per_second": 16.0,
        "tokens_per_second": 2048.0,
        "loss": float(loss),
        "learning_rate": 3e-4,
        "gradient_norm": 1.5,
        "mlm_accuracy": 0.25,
    }
    assert evaluation == {"step": 1, "kind": "eval", "loss": 5.0, "perplexity": float(np.exp(5.0))}


def test_numbers_of_single_parameters_go_to_tensorboard_alone(tmp_path):
    telemetry, _ = make_telemetry(tmp_path)
    telemetry.start(0)
    telemetry.train([record(1, **{"trust_ratio_max": 2.0, "trust_ratio/encoder/kernel": 2.0})], seconds=2.0)
    telemetry.close()
    (train,) = read_metrics(tmp_path)
    assert train["trust_ratio_max"] == 2.0 and "trust_ratio/encoder/kernel" not in train
    for tags in points(tmp_path):
        assert tags["train/trust_ratio/encoder/kernel"] == tags["train/trust_ratio_max"] == [(1, 2.0)]


def test_tensorboard_shows_no_stale_points_after_a_resume(tmp_path):
    first, _ = make_telemetry(tmp_path)
    first.start(0)
    first.train([record(step, loss=1.0) for step in range(1, 8)])
    first.evaluation(7, {"loss": 1.0})
    first.close()
    second, _ = make_telemetry(tmp_path)
    second.start(4)  # the checkpoint was of step 4
    second.train([record(5, loss=2.0)])
    second.close()
    for tags in points(tmp_path):
        assert tags["train/loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0)]
        assert tags["eval/loss"] == []


def test_tensorboard_holds_the_config_as_text(tmp_path):
    telemetry, _ = make_telemetry(tmp_path)
    telemetry.start(0, config_text="steps = 600\nseed = 1\n")
    telemetry.close()
    accumulator = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = accumulator.Tensors("config")
    assert event.tensor_proto.string_val[0] == b"    steps = 600\n    seed = 1\n"
    assert accumulator.SummaryMetadata("config").plugin_data.plugin_name == "text"


def test_a_tensorboard_folder_that_cannot_be_written_warns_once_and_training_goes_on(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    telemetry, screen = make_telemetry(tmp_path)
    telemetry.start(0)
    for step in (1, 2, 3):
        telemetry.train([record(step)], seconds=1.0)
    telemetry.close()
    assert screen.getvalue().count("warning") == 1
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]


def test_other_hosts_only_print_notes(tmp_path):
    telemetry, screen = make_telemetry(tmp_path, is_chief=False)
    telemetry.start(0)
    telemetry.train([record(1)], seconds=1.0)
    telemetry.evaluation(1, {"loss": 1.0})
    telemetry.note("host 3 is here")
    telemetry.close()
    assert screen.getvalue() == "host 3 is here\n"
    assert list(tmp_path.iterdir()) == []


def test_the_summary_adds_up(tmp_path):
    telemetry, screen = make_telemetry(tmp_path)
    telemetry.start(100)
    telemetry.compiled(12.5)
    telemetry.train([record(101), record(102, loss=2.5)], seconds=0.5)
    telemetry.saved(0.25)
    telemetry.saved(0.5)
    telemetry.close()
    text = re.sub(r"\s+", " ", screen.getvalue())
    for part in (
        "102 of 600 (resumed at 100)",
        "final loss │ 2.5",
        "examples │ 64",
        "12.5 s",
        "2 checkpoints",
        "0.75 s",
    ):
        assert part in text, text


def test_smoothing_equals_the_weighted_mean_of_all_values():
    values, smoothed = [3.0, 1.0, 4.0, 1.5], Smoothed(0.2)
    for value in [*values, float("nan")]:
        smoothed.add(value)
    weights = 0.8 ** np.arange(len(values))[::-1]
    assert smoothed.value == pytest.approx(np.sum(weights * values) / np.sum(weights))
