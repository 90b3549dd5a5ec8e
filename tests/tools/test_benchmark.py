"""The benchmark: its arithmetic, how it talks to measured processes, and small runs of its subjects."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import rich.console

from tools.benchmark import __main__ as program
from tools.benchmark import (
    accumulation,
    checkpoint,
    fine_tuning,
    optimizers,
    processes,
    reader,
    remote_input,
    rounds,
    startup,
    step,
    weights,
)
from tools.benchmark.peers import protocol
from tools.benchmark.settings import Settings
from tools.benchmark.tables import show
from trainer.errors import InputError, TrainingFailed

TINY = {
    "num_layers": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "feed_forward_size": 32,
    "vocabulary_size": 1200,
    "length": 16,
    "predictions": 3,
    "microbatch": 2,
    "rounds": 2,
    "round_seconds": 0.05,
    "reader_rows": 2000,
    "time_accumulation": 2,
    "memory_accumulation": 2,
}


def tiny_options(**changes):
    """Returns the command-line options of a tiny benchmark."""
    return [text for name, value in (TINY | changes).items() for text in (f"--{name}", str(value))]


def answers(*step_seconds):
    """Returns what a measured process answers to `run` in each round."""
    return [
        {"step_seconds": seconds, "cpu_seconds": 2.0 * len(seconds), "loss": 1.0, "peak_memory_bytes": 2**30}
        for seconds in step_seconds
    ]


def step_findings(ours, peer, product, absent=None):
    information = {
        step.OURS: {"versions": "ours", "prepare_seconds": 1.0, "operations_per_step": 3e9},
        "keras_hub": {"versions": "theirs", "prepare_seconds": 1.0},
        step.MATRIX_PRODUCT: {"operations_per_step": 1e9, "prepare_seconds": 1.0},
    }
    given = {step.OURS: answers(*ours), "keras_hub": answers(*peer), step.MATRIX_PRODUCT: answers(*product)}
    settings = Settings(microbatch=10, length=100)
    return step.summarize(settings, information, given, absent or {})


def test_rate_counts_all_steps_of_a_round():
    assert rounds.rate(1000, [1.0, 3.0]) == 500.0


def test_step_ratio_is_of_neighbours_so_a_busy_round_does_not_change_it():
    quiet = step_findings(ours=[[1.0], [1.0]], peer=[[2.0], [2.0]], product=[[0.2], [0.2]])
    busy = step_findings(ours=[[1.0], [5.0]], peer=[[2.0], [10.0]], product=[[0.2], [1.0]])
    for findings in (quiet, busy):
        assert findings.numbers["systems"]["keras_hub"]["ours_against_it"] == [2.0, 2.0]
        assert findings.numbers["share_of_matrix_product"] == pytest.approx([0.6, 0.6])
    assert quiet.numbers["systems"][step.OURS]["tokens_per_second"] == [1000.0, 1000.0]
    assert busy.numbers["systems"][step.OURS]["tokens_per_second"] == [1000.0, 200.0]


def test_ratio_by_cpu_is_of_processor_seconds_per_step():
    findings = step_findings(ours=[[1.0, 1.0]], peer=[[2.0]], product=[[0.5]])
    assert findings.numbers["systems"]["keras_hub"]["ours_against_it_by_cpu"] == [1.0]  # 2 seconds a step in each
    assert findings.numbers["share_of_matrix_product_by_cpu"] == [3.0]  # three times the operations in the same seconds


def test_numbers_are_whole_on_a_narrow_terminal():
    console = rich.console.Console(width=80, record=True)
    findings = step_findings(ours=[[1.001], [1.0]], peer=[[12.34567], [12.34567]], product=[[0.2], [0.2]])
    show(findings, console)
    text = console.export_text()
    assert "12.33-12.35" in text and step.OURS in text and "keras_hub" in text
    places = ("disk", "bucket", "distant", "cached")
    show(remote_input.summarize(Settings(), {name: [123456.0, 234567.0] for name in places}, 1000), console)
    show(reader.summarize(Settings(), {name: [123456.0, 234567.0] for name in reader.READERS}), console)
    text = console.export_text()
    assert "against bare" in text and "1.00 to 1.00" in text and "179,012" in text


def test_absent_peer_is_told_and_the_others_are_measured():
    findings = step_findings([[1.0]], [[2.0]], [[1.0]], absent={"bert4keras": "absent: No module named 'bert4keras'"})
    assert [row[0] for row in findings.rows] == [step.OURS, "keras_hub"]
    assert "bert4keras: absent: No module named 'bert4keras'" in findings.notes
    assert findings.numbers["absent"] == {"bert4keras": "absent: No module named 'bert4keras'"}


def test_accumulation_compares_with_as_many_single_steps():
    settings = Settings(time_accumulation=8, memory_accumulation=32)
    findings = accumulation.summarize(
        settings, {1: answers([1.0, 1.2, 0.8], [2.0]), 8: answers([7.6], [16.8])}, {1: 1000, 32: 1040}
    )
    assert findings.numbers["time_against_single_steps"] == pytest.approx([0.95, 1.05])
    assert findings.numbers["memory_against_single"] == 1.04


def test_optimizers_compares_updates_within_each_round_and_with_the_bytes_that_must_move():
    clipped = {name + optimizers.CLIPPED: answers([0.4], [0.4]) for name in (optimizers.OURS, optimizers.KERAS)}
    plain = {optimizers.OURS: answers([0.1], [0.3]), optimizers.KERAS: answers([0.4], [0.4])}
    updates = {1000: {**plain, **clipped, optimizers.MEMORY: answers([0.03], [0.03])}}
    windows = {optimizers.BARE: answers([2.0], [4.0]), optimizers.WRAPPED: answers([2.1], [4.0])}
    findings = optimizers.summarize(Settings(), updates, windows, {optimizers.PYTORCH: "absent: no torch"})
    numbers = findings.numbers["updates"]["1000"]
    assert numbers["ours_against_it"][optimizers.KERAS] == pytest.approx([0.25, 0.75])
    assert numbers["ours_against_it"][optimizers.KERAS + optimizers.CLIPPED] == pytest.approx([1.0, 1.0])
    # An addition moves three numbers where an update must move seven.
    assert numbers["ours_against_memory"] == pytest.approx([0.1 / 0.07, 0.3 / 0.07])
    assert findings.numbers["wrapper_cost"] == pytest.approx([0.05, 0.0])
    assert findings.notes[-1] == "pytorch, fused: absent: no torch"


def test_optimizers_measures_all_parameters_of_bert():
    base = optimizers.bert_shapes(num_layers=12, hidden_size=768, feed_forward_size=3072, vocabulary_size=30522)
    # Devlin et al. 2018 say 110M; with the head's matrix, normalisation and bias, without the pooler.
    assert sum(map(math.prod, base)) == 109_514_298


def test_fine_tuning_holds_peers_in_any_order_against_our_sorted_predictions():
    peer = "hugging_face_classifier"
    given = {
        "step": {fine_tuning.OURS: answers([0.5], [1.0]), peer: answers([1.0], [3.0])},
        "predict": {fine_tuning.OURS: answers([2.0], [2.0]), peer: answers([3.0], [5.0])},
        "predict_in_order": {peer: answers([6.0], [6.0])},
    }
    findings = fine_tuning.summarize(given, {})
    against = {mode: findings.numbers[mode]["ours_against_it"][peer] for mode in given}
    assert against == {"step": [2.0, 3.0], "predict": [1.5, 2.5], "predict_in_order": [3.0, 3.0]}
    assert findings.numbers["step"]["examples_per_second"][fine_tuning.OURS] == [64.0, 32.0]


def test_synthetic_sentences_are_as_long_as_they_say():
    settings = {"sentences": 400, "length": 64, "vocabulary_size": 5000}
    ids, lengths = protocol.synthetic_sentences(settings)
    assert ids.shape == (400, 64) and ids.dtype == np.int32
    np.testing.assert_array_equal((ids != 0).sum(axis=1), lengths)
    assert lengths.min() >= 4 and lengths.max() == 64 and 20 < lengths.mean() < 26


def test_reader_is_compared_within_each_round():
    rates = {"lanes": [60.0, 35.0], "bare": [100.0, 50.0], "parse_single_example": [10.0, 5.0]}
    findings = reader.summarize(Settings(), rates)
    assert findings.numbers["against_bare"]["lanes"] == [0.6, 0.7]
    assert findings.numbers["against_bare"]["bare"] == [1.0, 1.0]


def save_info(**changes):
    info = {"step": 1, "wait_seconds": 0.5, "copy_seconds": 0.25, "write_seconds": 2.0, "bytes": 2**22, "error": None}
    return info | changes


def test_checkpoint_stall_is_waiting_and_copying():
    answer = {"quiet_step_seconds": [1.5], "writing_step_seconds": [], "saves": [save_info()]}
    findings = checkpoint.summarize(Settings(), 1000, answer)
    assert findings.numbers["stall_seconds"] == [0.75]
    assert "2 MiB/s" in findings.notes[0]
    assert "50.0% of a step" in findings.notes[0]


def test_failed_save_is_not_reported_as_a_fast_one():
    answer = {"quiet_step_seconds": [1.0], "writing_step_seconds": [], "saves": [save_info(error="disk full")]}
    with pytest.raises(TrainingFailed, match="disk full"):
        checkpoint.summarize(Settings(), 1000, answer)


def test_startup_reads_each_mark_once_and_in_order():
    clock = iter([1.0, 2.0, 3.0])
    lines = [
        "strategy cpu, 1 replica on CPU:0\n",
        "global 16 = 1 replica x 1 accumulation x 16 microbatch\n",
        "compiled and did the first step in 2.0 s\n",
        "strategy again\n",
    ]
    seconds = startup.read_marks(lines, lambda: next(clock))
    assert list(seconds.values()) == [1.0, 2.0, 3.0]


def test_measured_programs_are_compiled_afresh_and_on_the_cpu():
    environment = {
        "TF_XLA_FLAGS": "--a=1 --tf_xla_persistent_cache_directory=/somewhere",
        "KERAS_BACKEND": "jax",
        "A": "b",
    }
    child = processes.child_environment(environment)
    assert child["TF_XLA_FLAGS"] == "--a=1"
    assert child["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "KERAS_BACKEND" not in child
    assert child["A"] == "b"


def test_synthetic_batch_masks_distinct_positions_and_keeps_their_tokens():
    settings = {"rows": 5, "length": 20, "predictions": 6, "vocabulary_size": 5000}
    token_ids, positions, labels = protocol.synthetic_batch(settings)
    assert token_ids.shape == (5, 20) and positions.shape == labels.shape == (5, 6)
    assert all(len(set(row)) == 6 for row in positions.tolist())
    assert (np.take_along_axis(token_ids, positions, axis=1) == 999).all()
    assert (np.sum(token_ids == 999, axis=1) == 6).all()
    assert (labels >= 1000).all() and (labels < 5000).all()


def measured(code):
    """Starts a measured process that runs the protocol with `prepare` as in `code`."""
    code = f"from tools.benchmark.peers import protocol\n{code}\nprotocol.serve(prepare)"
    return processes.MeasuredProcess("example", ["-c", code], {"rows": 3})


def test_measured_process_answers_each_command_though_libraries_print():
    code = (
        "def prepare(settings):\n"
        "    print('noise')\n"
        "    return {'rows': settings['rows']}, {'double': lambda number: {'number': 2 * number}}"
    )
    with measured(code) as process:
        assert process.absent is None
        assert process.information["rows"] == 3
        assert process.ask("double", number=4)["number"] == 8
        assert process.ask("double", number=5)["number"] == 10


def test_peak_memory_is_the_process_own():
    code = (
        "def fill(mebibytes):\n"
        "    held = bytearray(b'1') * (mebibytes << 20)\n"
        "    return {'held': len(held)}\n"
        "def prepare(settings):\n"
        "    return {}, {'fill': fill}"
    )
    with measured(code) as process:
        before = process.ask("fill", mebibytes=1)["peak_memory_bytes"]
        after = process.ask("fill", mebibytes=100)["peak_memory_bytes"]
        later = process.ask("fill", mebibytes=1)["peak_memory_bytes"]
    assert 90 << 20 < after - before < 110 << 20
    assert later == after


def test_peer_that_cannot_be_imported_is_absent():
    with measured("def prepare(settings):\n    import no_such_library_anywhere") as process:
        assert process.absent == "No module named 'no_such_library_anywhere'"
    with processes.peer("keras_hub", "keras_hub_bert.py", {}, python="/nowhere/python") as process:
        assert process.absent == "/nowhere/python: No such file or directory"


def test_process_that_dies_is_an_error_with_its_last_words():
    code = "def prepare(settings):\n    return {}, {'run': lambda: 1 / 0}"
    with measured(code) as process, pytest.raises(TrainingFailed, match="code 1: ZeroDivisionError: division by zero"):
        process.ask("run")


def test_peers_import_nothing_of_the_project():
    folder = os.path.dirname(protocol.__file__)
    for name in os.listdir(folder):
        if name.endswith(".py"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                text = file.read()
            assert "from trainer" not in text and "import trainer" not in text and "from tools" not in text, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["stepp"], "no subject 'stepp'"),
        (["--peer_python", "torch=/usr/bin/python"], "one of the peers keras_hub"),
        (["--hidden_size", "30", "--num_heads", "4"], "30 is not a multiple of --num_heads 4"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--predictions", "200"], "--predictions 200 is more than the --length 128"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(options, message):
    with pytest.raises(InputError, match=message):
        program.main(options)


@pytest.mark.slow
def test_input_subject_measures_a_bucket_on_this_machine(tmp_path):
    path = tmp_path / "numbers.json"
    options = tiny_options(length=128, input_shard_megabytes=1)
    assert program.main(["input", *options, "--json", str(path)]) == 0
    numbers = json.loads(path.read_text())["subjects"]["input"]
    assert set(numbers["rows_per_second"]) == {"disk", "bucket", "distant", "cached"}
    assert all(rate > 0 for rates in numbers["rows_per_second"].values() for rate in rates)


def test_reader_subject_measures_and_writes_json(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert program.main(["reader", *tiny_options(), "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    rates = content["subjects"]["reader"]["rows_per_second"]
    assert set(rates) == set(reader.READERS)
    assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
    assert content["settings"]["reader_rows"] == 2000
    assert "against bare" in capsys.readouterr().out


def test_loading_is_held_against_reading_the_bytes_in_the_same_round():
    def rounds_of(*seconds):
        return [{"seconds": each, "cpu_seconds": 2 * each} for each in seconds]

    quiet, busy = rounds_of(0.5, 0.5), rounds_of(0.5, 5.0)
    for read, factor in ((quiet, 1), (busy, 10)):
        given = {
            way: rounds_of(0.75, 0.75 * factor) for way in ("hugging_face", "tensorflow1", "checkpoint", "safetensors")
        }
        findings = weights.summarize(1000, 4 << 20, {weights.WARM: {weights.READING: read, **given}})
        numbers = findings.numbers[weights.WARM]
        assert numbers["against_bytes"]["tensorflow1"] == numbers["against_bytes_by_cpu"]["tensorflow1"] == [1.5, 1.5]
    assert findings.title == "Loading 1,000 parameters, float32, 4 MiB"


def test_weights_subject_measures_every_way_of_reading(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert program.main(["weights", *tiny_options(), "--json", str(path)]) == 0
    numbers = json.loads(path.read_text())["subjects"]["weights"]
    for cache in {weights.WARM, weights.COLD} & set(numbers):
        assert {"bytes", "safetensors", "hugging_face", "tensorflow1", "checkpoint"} == set(numbers[cache]["seconds"])
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in numbers[cache]["seconds"].values())
    assert weights.WARM in numbers
    assert "ours, TensorFlow 1" in capsys.readouterr().out


@pytest.mark.slow  # compiles the train step in several processes
def test_step_and_checkpoint_subjects_run_without_peers(tmp_path):
    path = tmp_path / "numbers.json"
    nowhere = [text for name in step.PEERS for text in ("--peer_python", f"{name}=/nowhere/python")]
    assert program.main(["step", "checkpoint", *tiny_options(), *nowhere, "--json", str(path)]) == 0
    subjects = json.loads(path.read_text())["subjects"]
    assert set(subjects["step"]["absent"]) == set(step.PEERS)
    assert len(subjects["step"]["systems"][step.OURS]["tokens_per_second"]) == 2
    assert len(subjects["checkpoint"]["stall_seconds"]) == 2
    assert subjects["checkpoint"]["bytes"] > 0


@pytest.mark.slow  # starts seven processes
def test_optimizers_subject_runs_without_pytorch(tmp_path):
    path = tmp_path / "numbers.json"
    options = tiny_options(base_updates=0, round_seconds=0.01)
    assert program.main(["optimizers", *options, "--peer_python", "pytorch=/nowhere/python", "--json", str(path)]) == 0
    numbers = json.loads(path.read_text())["subjects"]["optimizers"]
    assert set(numbers["absent"]) == {optimizers.PYTORCH}
    (update,) = numbers["updates"].values()
    assert set(update["ours_against_it"]) == {
        name + suffix for name in (optimizers.KERAS, optimizers.COMPILED_KERAS) for suffix in ("", optimizers.CLIPPED)
    }
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in update["seconds"].values())
    assert len(numbers["wrapper_cost"]) == 2


@pytest.mark.slow  # compiles the step and three programs of predictions
def test_fine_tuning_subject_runs_without_pytorch(tmp_path):
    path = tmp_path / "numbers.json"
    nowhere = ["--peer_python", f"hugging_face_classifier={tmp_path / 'nowhere'}"]
    assert program.main(["fine_tuning", "--json", str(path), *nowhere, *tiny_options()]) == 0
    numbers = json.loads(path.read_text())["subjects"]["fine_tuning"]
    assert set(numbers["absent"]) == {"hugging_face_classifier"}
    assert all(
        rate > 0 for mode in ("step", "predict") for rate in numbers[mode]["examples_per_second"]["bert-trainer"]
    )


@pytest.mark.slow  # starts the program twice and compiles the step
def test_startup_subject_sees_the_first_step(tmp_path):
    path = tmp_path / "numbers.json"
    assert program.main(["startup", *tiny_options(), "--json", str(path)]) == 0
    for seconds in json.loads(path.read_text())["subjects"]["startup"]["seconds"].values():
        assert len(seconds) == 3
        assert list(seconds.values()) == sorted(seconds.values())


def test_benchmark_itself_imports_no_tensorflow():
    """A parent that holds much memory would show in what its children report, and take time from them."""
    code = "import sys, tools.benchmark.__main__; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
