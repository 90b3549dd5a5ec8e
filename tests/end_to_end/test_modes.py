"""The modes of the command line on one small run: each says what training said, or what a program needs of it."""

import csv
import io
import json
import re
import types

import numpy as np
import pytest
import tensorflow as tf
import trainer_process

from trainer import modes
from trainer.data.tokenization import Tokenizer
from trainer.data.vocabulary import load_vocabulary
from trainer.errors import InputError

TEXTS = ("the child drinks a cup of [MASK].", "her [MASK] repairs an [MASK] again.")


def run_mode(run_dir, mode, *others):
    """Runs a mode with the configuration that lies in the run directory."""
    return trainer_process.train([], run_dir, others=("--mode", mode, *others))


def test_a_plan_shows_batch_parameters_and_memory_and_touches_nothing(tiny_gin, tmp_path):
    finished = trainer_process.train(tiny_gin, tmp_path / "run", others=("--mode", "plan"))
    assert "global 16 = 1 replica x 4 accumulation x 4 microbatch" in finished.output
    assert re.search(r"tokens, padding included\W+5,120\b", finished.output)  # 20 steps of 16 rows of 16 tokens
    parameters = finished.output.partition("parameters")[2].partition("memory")[0]
    *parts, total = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+(?= +│?\n)", parameters))
    assert len(parts) >= 3 and sum(parts) == total
    assert "optimizer slots" in finished.output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_step_without_a_checkpoint_is_refused_with_those_there_are(trained_run):
    finished = trainer_process.train([], trained_run, others=("--mode", "evaluate", "--step", 13), code=2)
    assert "holds no checkpoint of step 13; there are: 10, 15, 20" in finished.text


def test_evaluation_of_a_checkpoint_gives_what_training_wrote_down(trained_run):
    finished = run_mode(trained_run, "evaluate", "--step", 10)
    assert "evaluation at step 10" in finished.output
    shown = dict(re.findall(r"^  (\w+) (\S+)$", finished.output, re.MULTILINE))
    logged = trainer_process.metrics(trained_run, "eval")[10]
    for name in ("loss", "masked_language_model_loss", "accuracy", "perplexity"):
        assert float(shown[name]) == pytest.approx(logged[name], rel=1e-5)


@pytest.mark.slow  # looks into every example by itself
def test_a_replayed_step_has_the_loss_and_gradient_norm_of_the_first_time(trained_run):
    finished = run_mode(trained_run, "replay", "--step", 14)
    assert "replaying step 14 from step 10" in finished.output
    rows = dict(re.findall(r"^│ (loss|gradient_norm|update_norm) +│ (.*) │$", finished.output, re.MULTILINE))
    assert set(rows) == {"loss", "gradient_norm", "update_norm"}
    for name, row in rows.items():
        now, before = (text.strip() for text in row.split("│"))
        assert now == before == f"{trainer_process.metrics(trained_run)[14][name]:.9g}"


@pytest.fixture(scope="module")
def answers(trained_run, tmp_path_factory):
    """What `--mode predict --input FILE --output FILE` wrote for the texts."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    paths = ("--input", folder / "texts.txt", "--output", folder / "answers.jsonl", "--top_k", 3)
    finished = run_mode(trained_run, "predict", *paths)
    assert finished.output == ""
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_predictions_in_a_file_are_a_line_a_text_and_a_list_a_mask(answers):
    assert [answer["text"] for answer in answers] == list(TEXTS)
    assert [len(answer["masks"]) for answer in answers] == [1, 2]
    for answer in answers:
        for candidates in answer["masks"]:
            probabilities = [candidate["probability"] for candidate in candidates]
            assert len(candidates) == 3
            assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) < 1


def test_predictions_on_standard_output_are_those_of_the_file(trained_run, answers):
    finished = run_mode(trained_run, "predict", "--top_k", 3, *TEXTS)
    masks = [candidates for answer in answers for candidates in answer["masks"]]
    lines = [line for line in finished.output.splitlines() if line.startswith("  ")]
    assert [line for line in finished.output.splitlines() if line not in lines] == list(TEXTS)
    for line, candidates in zip(lines, masks, strict=True):
        expected = "  ".join(f"{item['token']} {item['probability']:.3f}" for item in candidates)
        assert line.endswith(f"  {expected}")


def test_an_exported_model_gives_the_answers_of_predict(trained_run, answers, small_corpus, tmp_path):
    finished = run_mode(trained_run, "export", "--output", tmp_path / "exported")
    assert f"exported to {tmp_path / 'exported'}" in finished.output
    # Everything a program needs lies in the folder.
    vocabulary = load_vocabulary(str(tmp_path / "exported" / "assets.extra" / "vocab.txt"))
    assert vocabulary.pieces == load_vocabulary(str(small_corpus / "vocab.txt")).pieces
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    for answer in answers:
        ids = Tokenizer(vocabulary, lower_case=True).ids_with_masks(answer["text"])
        row = np.zeros([1, 16], np.int32)
        row[0, : len(ids) + 2] = [vocabulary.classification_id, *ids, vocabulary.separator_id]
        positions = np.flatnonzero(row[0] == vocabulary.mask_id)[None].astype(np.int32)
        outputs = exported.signatures["serving_default"](
            token_ids=tf.constant(row), segment_ids=tf.zeros_like(row), positions=tf.constant(positions)
        )
        assert outputs["token_logits"].shape == (1, len(answer["masks"]), len(vocabulary))
        probabilities = tf.nn.softmax(outputs["token_logits"][0]).numpy()
        for candidates, row_probabilities in zip(answer["masks"], probabilities, strict=True):
            best = np.argsort(-row_probabilities)[:3]
            assert [vocabulary.pieces[token] for token in best] == [item["token"] for item in candidates]
            assert row_probabilities[best] == pytest.approx([item["probability"] for item in candidates], rel=1e-4)
    hidden = exported.signatures["encode"](token_ids=tf.constant(row), segment_ids=tf.zeros_like(row))["hidden"]
    assert hidden.shape == (1, 16, 16)


def test_a_file_of_answers_is_what_its_name_says():
    table = [["text", "label"], ['a "b",\n\tc', "x"], ["", "y"]]
    answers = [{"text": text, "label": label} for text, label in table[1:]]
    task = types.SimpleNamespace(prediction_table=lambda answers: table)
    content = modes.answer_file("run/answers.CSV", task, answers)
    assert list(csv.reader(io.StringIO(content, newline=""))) == table
    assert modes.answer_file("a.tsv", task, answers) == 'text\tlabel\na "b", c\tx\n\ty\n'
    assert [json.loads(line) for line in modes.answer_file("a.jsonl", task, answers).splitlines()] == answers


@pytest.mark.parametrize(
    ("content", "texts", "told"),
    [
        (b"\xef\xbb\xbfa\r\n\n\xe2\x80\xa8b\x0cc", ["a", "\u2028b\x0cc"], ["standard input: 1 of 3 lines are empty"]),
        (b"a\n\xb2\xbb", "standard input line 2 is not UTF-8", []),
        (b" \n", "nothing to predict", ["standard input: 1 of 1 lines are empty"]),
    ],
)
def test_standard_input_is_lines_of_text(monkeypatch, content, texts, told):
    standard_input = types.SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", standard_input)
    notes, arguments = [], types.SimpleNamespace(input=None, texts=[])
    if isinstance(texts, list):
        assert modes._texts(arguments, notes.append) == texts
    else:
        with pytest.raises(InputError, match=texts):
            modes._texts(arguments, notes.append)
    assert [note.removesuffix(" and get no answer") for note in notes] == told


def test_a_text_that_no_file_can_hold_is_refused_before_the_work():
    arguments = types.SimpleNamespace(input=None, texts=["a", "b \udcff"])
    with pytest.raises(InputError, match=r"the command line: .*half of a character"):
        modes._texts(arguments, print)


def test_evaluation_looks_at_the_storage_of_what_it_reads_alone(monkeypatch):
    looked_at = []
    monkeypatch.setattr(modes, "check_storage", lambda reads, writes, report: looked_at.append(reads))
    data = types.SimpleNamespace(paths=("gs://a/train", "gs://b/dev"), evaluation_paths=("gs://b/dev",))
    run = types.SimpleNamespace(task=types.SimpleNamespace(data=data), initial_weights="gs://c/bert")
    for mode in ("evaluate", "train"):
        modes._check_storage(types.SimpleNamespace(mode=mode, run_dir="run", input=None, output=None), run)
    assert looked_at == [["run", "gs://b/dev"], ["gs://a/train", "gs://b/dev", "gs://c/bert"]]
