"""The classification task: losses by their formulas, the same on every topology, answers in the order of the texts."""

import dataclasses
import io
import json
import types

import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from rich.console import Console
from scipy.special import expit, log_softmax
from small_runs import SMALL_ENCODER, small_run, small_task, strategy_of

from trainer import storage
from trainer.data.classification_data import ClassificationData
from trainer.data.vocabulary import SPECIAL_TOKENS, make_vocabulary
from trainer.distribution import divide_batch
from trainer.errors import InputError
from trainer.optimizers.recipes import adamw
from trainer.optimizers.schedules import LinearSchedule
from trainer.tasks.classification import ClassificationConfig, find_class_weights
from trainer.tasks.classify_texts import batches_by_length, padded_length, split_pairs
from trainer.tasks.objectives import SingleLabel
from trainer.training import loop
from trainer.training.best_checkpoint import check_best_metric
from trainer.training.evaluation import EvaluationStep
from trainer.training.run_directory import RunDirectory

WORDS = {"animal": ["cat", "dog", "cow"], "colour": ["red", "blue", "green"], "number": ["one", "two", "three"]}
FILLING = ["the", "a", "is", "on", "of", "and", "with", "very"]
VOCABULARY = make_vocabulary([*SPECIAL_TOKENS, *FILLING, *(word for words in WORDS.values() for word in words)])
HELD_OUT = 21  # no multiple of any batch here


def make_examples(rng, count):
    """Sentences in which words of some kinds stand; the one that stands most often is the class."""
    examples = []
    for _ in range(count):
        kinds = rng.choice(list(WORDS), rng.integers(1, 3), replace=False)
        main = kinds[0]
        words = [*rng.choice(WORDS[main], 2), *(rng.choice(WORDS[kind]) for kind in kinds[1:])]
        words += rng.choice(FILLING, rng.integers(1, 8)).tolist()
        rng.shuffle(words)
        middle = len(words) // 2
        examples.append(
            {
                "text": " ".join(words),
                "start": " ".join(words[:middle]),
                "end": " ".join(words[middle:]),
                "main": main,
                "kinds": sorted(kinds),
                "length": len(words) / 4,
            }
        )
    return examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files to train on and to evaluate on, and a vocabulary."""
    folder = tmp_path_factory.mktemp("classification")
    rng = np.random.default_rng(5)
    VOCABULARY.save(folder / "vocab.txt")
    for name, count in (("train", 80), ("dev", HELD_OUT)):
        lines = [json.dumps(example) + "\n" for example in make_examples(rng, count)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


LABELS = {"single_label": "main", "multi_label": "kinds", "regression": "length"}


def make_config(folder, objective="single_label", *, encoder=SMALL_ENCODER, pairs=False, data=None, **options):
    """Returns the configuration of the task on the files of `folder`."""
    columns = {"text_column": "start", "pair_column": "end"} if pairs else {}
    settings = {
        "train": f"{folder}/train.jsonl",
        "held_out": f"{folder}/dev.jsonl",
        "vocabulary": f"{folder}/vocab.txt",
        "label_column": LABELS[objective],
        "max_length": 16,
        "lanes": 8,
    }
    data = ClassificationData(**settings | columns | (data or {}))
    return ClassificationConfig(data=data, encoder=encoder, objective=objective, **options)


def make_task(folder, *arguments, **options):
    """Opens the task; arguments as of `make_config`."""
    return make_config(folder, *arguments, **options).open(None, report=lambda line: None)


def trained_directory(path, task):
    """Returns the `RunDirectory` of a run of the task with a checkpoint, as far as opening it looks at it."""
    directory = RunDirectory(path, report=lambda line: None)
    task.save_description(directory.path)
    checkpoint = path / "checkpoints" / "step_00000001"
    manifest = {"step": 1, "metadata": {"data": list(task.fingerprints), "vocabulary": task.vocabulary_sha256}}
    storage.make_folder(checkpoint)
    storage.write_json(checkpoint / "manifest.json", manifest)
    (checkpoint / "COMMITTED").touch()
    return directory


def write_examples(path, examples):
    """Writes labelled texts; returns the path."""
    path.write_text("".join(json.dumps({"text": text, "main": label}) + "\n" for text, label in examples))
    return str(path)


def examples_of(task, num_steps=4):
    """Returns what gives the examples of a step, for `small_run`; the first steps come again after so many."""
    dataset = task.training_dataset(seed=1, start_step=0, global_batch=16, rows_per_element=16)
    steps = list(dataset.take(num_steps).as_numpy_iterator())
    return lambda step, global_batch: steps[step % num_steps]


def held_out(task):
    """Returns the held-out examples, padding included, as one batch."""
    dataset, num_steps = task.evaluation_dataset(global_batch=24, rows_per_element=24, host=0, num_hosts=1)
    assert num_steps == 1
    return next(dataset.take(1).as_numpy_iterator())


def logits_of(task, model, examples):
    """Returns the logits of examples as a NumPy array."""
    return model(examples["token_ids"], examples["segment_ids"], examples["document_ids"]).numpy()


def logits_and_sums(task, examples):
    """Returns the logits of a fresh model, and its losses and metrics divided by their weights."""
    model = task.build_model(seed=1, dtype="float32")
    features = task.prepare(examples, None)
    weights = {name: float(value) for name, value in task.weights(features).items()}
    sums = task.sums(model, features, None)
    averages = {name: float(value) / weights[name] for name, value in sums.losses.items()}
    averages |= {name: float(value) / weights[task.metric_names[name]] for name, value in sums.metrics.items()}
    return logits_of(task, model, examples)[:HELD_OUT], averages, sums.outputs.numpy()


@pytest.mark.parametrize("weights", [None, {"number": 5, "animal": 0.5}, [0.5, 1, 5.0]])
def test_the_loss_of_one_class_is_the_weighted_mean_of_cross_entropies(folder, weights):
    task = make_task(folder, class_weights=weights)
    examples = held_out(task)
    logits, averages, outputs = logits_and_sums(task, examples)
    labels = examples["labels"][:HELD_OUT]
    losses = -log_softmax(logits, axis=1)[np.arange(HELD_OUT), labels]
    counted = np.ones(3) if weights is None else np.array([0.5, 1, 5])
    assert averages["classification"] == pytest.approx(np.average(losses, weights=counted[labels]), rel=1e-5)
    assert averages["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels), rel=1e-6)
    np.testing.assert_allclose(outputs[:HELD_OUT], np.column_stack([logits, labels, np.ones(HELD_OUT)]), rtol=1e-6)
    assert not outputs[HELD_OUT:, -1].any()


@pytest.mark.parametrize("weights", [None, [1, 2, 7]])
def test_the_loss_of_several_labels_is_the_mean_over_labels_of_sigmoid_cross_entropies(folder, weights):
    task = make_task(folder, "multi_label", class_weights=weights)
    examples = held_out(task)
    logits, averages, outputs = logits_and_sums(task, examples)
    labels = examples["labels"][:HELD_OUT].astype(float)
    losses = -(labels * np.log(expit(logits)) + (1 - labels) * np.log(expit(-logits)))
    expected = np.average(losses, axis=1, weights=weights).mean()
    assert averages["classification"] == pytest.approx(expected, rel=1e-5)
    assert averages["accuracy"] == pytest.approx(np.mean((logits >= 0) == (labels > 0)), rel=1e-6)
    np.testing.assert_allclose(outputs[:HELD_OUT, 3:6], labels)


def test_the_loss_of_regression_is_the_mean_squared_error(folder):
    task = make_task(folder, "regression")
    examples = held_out(task)
    logits, averages, _ = logits_and_sums(task, examples)
    expected = np.mean((logits[:, 0] - examples["labels"][:HELD_OUT]) ** 2)
    assert averages["classification"] == averages["mean_squared_error"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("single_label", {"class_weights": "balanced", "pairs": True}),
        ("multi_label", {"pooling": "mean"}),
        ("regression", {"pooling": "max", "pooler": False}),
    ],
)
def test_losses_do_not_depend_on_how_a_batch_is_split(folder, objective, options):
    task = make_task(folder, objective, **options)
    reference = small_run(task=task, examples=examples_of(task)).train(3)
    divided = small_run(replicas=2, accumulation=4, task=task, examples=examples_of(task)).train(3)
    for ours, expected in zip(divided, reference, strict=True):
        assert ours["skipped"] == 0
        for name in ("loss", "gradient_norm", *task.metric_names):
            assert ours[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_padding_does_not_change_an_answer(folder, pooling):
    task = make_task(folder, pooling=pooling)
    model = task.build_model(seed=2, dtype="float32")
    examples = held_out(task)
    short = {name: examples[name][:HELD_OUT, :13] for name in ("token_ids", "segment_ids", "document_ids")}
    assert (examples["document_ids"][:HELD_OUT].sum(axis=1) <= 13).all()
    np.testing.assert_allclose(
        logits_of(task, model, short), logits_of(task, model, examples)[:HELD_OUT], rtol=1e-4, atol=1e-6
    )


def test_the_first_token_s_vector_alone_gives_what_all_of_them_give(folder):
    task = make_task(folder)
    model = task.build_model(seed=2, dtype="float32")
    examples = held_out(task)
    hidden = model.encoder(examples["token_ids"], examples["segment_ids"], examples["document_ids"])
    whole = model.classifier(model.pooler(hidden))
    np.testing.assert_allclose(logits_of(task, model, examples), whole.numpy(), rtol=1e-4, atol=1e-6)


def test_dropout_on_the_pooled_vector_acts_in_training_alone(folder):
    still = dataclasses.replace(SMALL_ENCODER, dropout=0.0, attention_dropout=0.0)
    losses = {}
    for dropout in (0.0, 0.5):
        task = make_task(folder, dropout=dropout, encoder=still)
        losses[dropout] = small_run(task=task, examples=examples_of(task)).train(1)[0]["loss"]
    assert losses[0.0] != pytest.approx(losses[0.5], rel=1e-4)


def evaluate(task, model, replicas, global_batch, microbatch):
    """Returns the metrics of the held-out examples."""
    strategy = strategy_of(replicas)
    batch = divide_batch(global_batch, replicas, microbatch, 1)
    num_steps = 0

    def dataset(_):
        nonlocal num_steps
        made, num_steps = task.evaluation_dataset(
            global_batch=global_batch, rows_per_element=batch.rows_per_replica, host=0, num_hosts=1
        )
        return made

    iterator = iter(strategy.distribute_datasets_from_function(dataset))
    with strategy.scope():
        return EvaluationStep(strategy, task, model, batch, compile_step=False).metrics(iterator, num_steps)


def learnt(task, num_steps=60):
    """Returns the model of a task after some steps of training."""
    optimizer = adamw(learning_rate=LinearSchedule(peak=1e-2, total_steps=num_steps, warmup_steps=5))
    run = small_run(task=task, examples=examples_of(task, 20), optimizer=optimizer)
    first, *_, last = run.train(num_steps)
    assert last["loss"] < first["loss"]
    return run.state.model


def actual_labels(task):
    """The held-out labels as NumPy array."""
    return task.data.labels["held_out"]


def test_evaluation_of_one_class_is_what_scikit_learn_says_of_the_answers(folder):
    task = make_task(folder, class_weights="balanced")
    model = learnt(task)
    predicted = [answer["label"] for answer in task.predict(model, task.data.texts["held_out"].first, 1)]
    actual = task.data.texts["held_out"].labels
    metrics = evaluate(task, model, 1, 8, 4)
    assert metrics["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(actual, predicted))
    assert metrics["f1_macro"] == pytest.approx(sklearn.metrics.f1_score(actual, predicted, average="macro"))
    assert metrics["matthews_correlation"] == pytest.approx(sklearn.metrics.matthews_corrcoef(actual, predicted))
    assert "f1" not in metrics and len(set(predicted)) > 1


def test_evaluation_of_several_labels_is_what_scikit_learn_says_of_the_answers(folder):
    task = make_task(folder, "multi_label")
    model = learnt(task)
    answers = task.predict(model, task.data.texts["held_out"].first, 3)
    predicted = np.array([[name in answer["labels"] for name in task.data.class_names] for answer in answers])
    actual = actual_labels(task) > 0
    metrics = evaluate(task, model, 1, 8, 8)
    for average in ("micro", "macro"):
        expected = sklearn.metrics.f1_score(actual, predicted, average=average, zero_division=0)
        assert metrics[f"f1_{average}"] == pytest.approx(expected)
    assert metrics["exact_match"] == pytest.approx(sklearn.metrics.accuracy_score(actual, predicted))
    assert metrics["accuracy"] == pytest.approx(np.mean(actual == predicted))


def test_evaluation_of_regression_is_the_same_on_every_topology(folder):
    task = make_task(folder, "regression")
    model = learnt(task)
    values = [answer["value"] for answer in task.predict(model, task.data.texts["held_out"].first, 1)]
    actual = actual_labels(task)
    metrics = evaluate(task, model, 1, 8, 8)
    assert metrics["mean_squared_error"] == pytest.approx(sklearn.metrics.mean_squared_error(actual, values), rel=1e-5)
    assert metrics["pearson_correlation"] == pytest.approx(np.corrcoef(actual, values)[0, 1], rel=1e-4)
    assert metrics["pearson_correlation"] > 0.5
    other = evaluate(task, model, 1, 12, 3)
    assert {name: pytest.approx(value, rel=1e-5) for name, value in metrics.items()} == other


def test_two_classes_have_an_f1_of_the_second():
    objective = SingleLabel(("no", "yes"))
    logits, labels = np.array([[0, 1], [1, 0], [0, 2], [3, 0.0]]), np.array([[1], [1], [0], [0]])
    assert objective.data_set_metrics(logits, labels)["f1"] == pytest.approx(0.5)


def test_batches_of_equal_length_hold_every_text_once_in_few_shapes():
    rng = np.random.default_rng(3)
    num_tokens = np.clip(rng.geometric(0.02, 3000), 2, 500)
    batches = batches_by_length(num_tokens, 500)
    lengths = {length for _, length in batches}
    assert len(lengths) <= 8 and all(len(numbers) == 32 for numbers, _ in batches)
    assert set(np.concatenate([numbers for numbers, _ in batches]).tolist()) == set(range(3000))
    assert sum(len(numbers) for numbers, _ in batches) < 3000 + 32 * len(lengths)
    assert all(num_tokens[numbers].max() <= length for numbers, length in batches)
    assert sum(32 * length for _, length in batches) < 1.55 * num_tokens.sum()
    # A few texts are one batch: no second program is worth while.
    assert [(len(numbers), length) for numbers, length in batches_by_length(np.array([3, 70, 9]), 128)] == [(3, 80)]


def test_a_length_gets_a_program_where_that_saves_more_than_it_costs():
    def shapes(**texts_of_length):
        num_tokens = np.repeat([int(name[1:]) for name in texts_of_length], list(texts_of_length.values()))
        return sorted({length for _, length in batches_by_length(num_tokens, 512)})

    assert shapes(n16=200, n64=200) == [16, 64]  # 200 * 48 tokens of padding saved
    assert shapes(n16=150, n64=5000) == [64]
    assert shapes(n8=100, n16=100, n64=5000) == [16, 64]  # no program for 8, which would save 800 tokens
    assert shapes(n8=2000, n16=2000, n24=2000) == [8, 16, 24]
    assert shapes(n8=500, n16=500, n24=500) == [24]


def test_padding_is_less_than_8_tokens_or_a_quarter():
    for number in range(1, 600):
        length = padded_length(number, 1000)
        assert length % 8 == 0 and 0 <= length - number < max(8, number / 4)
    assert padded_length(97, 100) == 100
    assert len({padded_length(number, 512) for number in range(1, 513)}) == 20


def test_texts_of_any_length_get_the_answers_they_get_alone(folder):
    task = make_task(folder, data={"max_length": 40}, encoder=dataclasses.replace(SMALL_ENCODER, max_length=64))
    model = task.build_model(seed=4, dtype="float32")
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(FILLING + ["cat", "red"], rng.integers(1, 60))) for _ in range(40)]
    together = task.predict(model, texts, 3)
    assert [answer["text"] for answer in together] == texts
    for answer, text in list(zip(together, texts, strict=True))[::9]:
        (alone,) = task.predict(model, [text], 3)
        assert alone["label"] == answer["label"]
        assert alone["probabilities"] == pytest.approx(answer["probabilities"], rel=1e-4)
        assert sum(alone["probabilities"].values()) == pytest.approx(1, rel=1e-5)
    assert len(task.predict(model, texts[:1], 2)[0]["probabilities"]) == 2


def test_pairs_come_with_a_tab_between(folder):
    task = make_task(folder, pairs=True)
    model = task.build_model(seed=4, dtype="float32")
    answers = task.predict(model, ["the cat\ta dog", "a dog\tthe cat"], 1)
    assert [(answer["text"], answer["text_pair"]) for answer in answers] == [("the cat", "a dog"), ("a dog", "the cat")]
    assert answers[0]["probabilities"] != answers[1]["probabilities"]
    assert split_pairs(["a\t", "\tb"]) == (["a", ""], ["", "b"])
    for texts in (["a\tb", "the cat"], ["a\tb", "a\tb\tc"]):
        with pytest.raises(InputError, match=r"text 2 is no pair: .* tab between"):
            split_pairs(texts)


@pytest.fixture
def texts_in(folder, tmp_path):
    """A function that reads a file of texts with a task whose data is of the options, and what it told."""

    def read(name, content, task_options=None, **data):
        (tmp_path / name).write_bytes(content.encode())
        notes = []
        task = make_task(folder, **task_options or {}, data=data)
        return task.texts_in_file(str(tmp_path / name), notes.append), [note.rpartition("/")[2] for note in notes]

    return read


def test_a_file_in_the_format_of_the_task_is_read_for_prediction(folder, texts_in):
    task = make_task(folder)
    notes = []
    assert task.texts_in_file(f"{folder}/dev.jsonl", notes.append) == task.data.texts["held_out"].first
    assert notes == [f"{folder}/dev.jsonl is read as jsonl"]
    pairs = {"task_options": {"pairs": True}}
    assert texts_in("a.csv", 'start,end\n"a, b",c\n"d\te",\n', **pairs)[0] == ["a, b\tc", "d e\t"]
    assert texts_in("a.txt", "a\tb\n", **pairs) == (["a\tb"], ["a.txt is read as lines of one pair each"])


def test_lines_of_text_end_at_line_feeds_and_empty_ones_are_counted(texts_in):
    texts, notes = texts_in("a.txt", "\ufeffthe cat\r\n\n the \u2028 red \x0c dog\n")
    assert texts == ["the cat", " the \u2028 red \x0c dog"]
    assert notes == ["a.txt: 1 of 3 lines are empty and get no answer", "a.txt is read as lines of one text each"]


def test_a_file_to_answer_for_is_read_as_the_training_files_where_its_name_does_not_say_otherwise(
    folder, texts_in, tmp_path
):
    table, train = "main\ttext\nanimal\ta cat\n", {"train": f"{folder}/train.dat", "file_format": "jsonl"}
    (folder / "train.dat").write_bytes((folder / "train.jsonl").read_bytes())
    assert texts_in("a.tsv", table, **train) == (["a cat"], ["a.tsv is read as tsv"])
    for name in ("a.txt", "a.dat", "a"):
        expected = (["a cat"], [f"{name} is read as jsonl"])
        assert texts_in(name, '{"text": "a cat"}\n', **train) == expected
    # Tables whose names say something else than what they are.
    (tmp_path / "train.csv").write_text(table + "colour\tred\n")
    train = {"train": f"{tmp_path}/train.csv", "file_format": "tsv", "held_out": None}
    assert texts_in("a.csv", table, **train) == (["a cat"], ["a.csv is read as tsv"])


def test_labels_before_texts_are_left_out_where_all_lines_have_one(texts_in, tmp_path):
    (tmp_path / "train.txt").write_text("good a cat\nbad a dog\n")
    train = {"train": f"{tmp_path}/train.txt", "held_out": None}
    as_labelled = ["a.txt is read as lines of a label and a text each; the labels are left out"]
    assert texts_in("a.txt", "good the cat\n\nbad\ta dog\n", **train)[0] == ["the cat", "a dog"]
    assert texts_in("a.txt", "good the cat\nbad\ta dog\n", **train)[1] == as_labelled
    for content, number in (("good the cat\na good dog\n", 1), ("good the cat\nbad\n", 1)):
        texts, (note,) = texts_in("a.txt", content, **train)
        assert texts == content.splitlines()
        assert note.endswith(f"one text each, without labels; warning: {number} of 2 begin with what could be a label")
    assert texts_in("a.txt", "a cat\n", **train)[1] == ["a.txt is read as lines of one text each, without labels"]
    assert texts_in("a.dat", "good the cat\n", **train)[0] == ["good the cat"]
    assert texts_in("a.dat", "good the cat\n", **train, file_format="label_first")[0] == ["the cat"]


@pytest.mark.parametrize("objective", LABELS)
def test_answers_are_shown_to_people_and_written_as_a_table(folder, objective):
    task = make_task(folder, objective, pairs=objective == "regression")
    model = task.build_model(seed=4, dtype="float32")
    texts = ["the [cat]\ta  dog"] if objective == "regression" else ["the [cat] a  dog"]
    (answer,) = answers = task.predict(model, texts, 2)
    assert json.loads(json.dumps(answers)) == answers
    shown = io.StringIO()
    task.show_predictions(answers, Console(file=shown, width=100))
    header, row = task.prediction_table(answers)
    assert task.prediction_table([]) == [header]
    if objective == "regression":
        assert shown.getvalue() == f"the [cat] | a  dog\n  {answer['value']:.4g}\n"
        assert (header, row[:2]) == (["text", "text_pair", "value"], ["the [cat]", "a  dog"])
        assert float(row[2]) == pytest.approx(answer["value"])
        return
    told = answer["probabilities"]
    first, second = sorted(told, key=lambda name: -told[name])
    assert f"{first} {told[first]:.3f}  {second} {told[second]:.3f}" in shown.getvalue()
    assert header == ["text", "labels" if objective == "multi_label" else "label"] + [
        f"probability_{name}" for name in ("animal", "colour", "number")
    ]
    assert row[0] == "the [cat] a  dog" and row[2:].count("") == 1
    if objective == "single_label":
        assert row[1] == answer["label"] == first
    else:
        assert row[1] == ",".join(name for name in ("animal", "colour", "number") if name in answer["labels"])


@pytest.mark.parametrize("objective", LABELS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_served_model_gives_the_answers_of_predict_for_rows_of_any_length(folder, objective, pooling):
    task = make_task(folder, objective, pooling=pooling)
    model = task.build_model(seed=4, dtype="float32")
    signatures = task.serving_signatures(model)
    texts = task.data.texts["held_out"].first[:3]
    answers = task.predict(model, texts, 3)
    encoded = task.data.encode(texts)
    for extra in (0, 4):
        ids = tf.constant(np.pad(encoded.token_ids[:, :12], ((0, 0), (0, extra))))
        served = signatures["serving_default"](token_ids=ids, segment_ids=tf.zeros_like(ids))
        if objective == "regression":
            assert served["value"].numpy().tolist() == pytest.approx([each["value"] for each in answers], rel=1e-4)
        else:
            for row, answer in zip(served["probabilities"].numpy(), answers, strict=True):
                named = dict(zip(task.data.class_names, row.tolist(), strict=True))
                assert named == pytest.approx(answer["probabilities"], rel=1e-4)
        assert signatures["encode"](token_ids=ids, segment_ids=ids)["hidden"].shape == (3, 12 + extra, 16)
    labels = json.loads(task.serving_assets()["labels.json"])
    assert labels["class_names"] == list(task.data.class_names) and labels["objective"] == objective
    assert task.serving_assets()["vocab.txt"] == (folder / "vocab.txt").read_bytes()


def test_an_example_is_described_by_label_and_tokens(folder):
    for objective, expected in (("single_label", "animal"), ("multi_label", "animal, colour"), ("regression", "1.5")):
        task = make_task(folder, objective)
        labels = {"single_label": np.int32(0), "multi_label": np.uint8([1, 1, 0]), "regression": np.float32(1.5)}
        examples = {
            "token_ids": np.array([[2, VOCABULARY.ids["cat"], 3, 0]]),
            "document_ids": np.array([[1, 1, 1, 0]]),
            "labels": np.array([labels[objective]]),
        }
        assert task.describe_example(examples, 0) == f"{expected}: [CLS] cat [SEP]"


def test_an_encoder_without_segment_types_reads_pairs(folder):
    encoder = dataclasses.replace(SMALL_ENCODER, type_vocabulary_size=1)
    task = make_task(folder, pairs=True, encoder=encoder)
    features = task.prepare(held_out(task), None)
    assert not features["segment_ids"].numpy().any()
    assert np.isfinite(logits_of(task, task.build_model(seed=0, dtype="float32"), features)).all()


def test_class_weights_have_a_least_of_one_and_the_given_ratios():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    names = ("a", "b", "c")

    def found(given, objective="single_label"):
        return find_class_weights(given, objective, names, labels).tolist()

    assert found("balanced") == [1.0, 2.0, 6.0]
    assert found({"b": 0.5}) == [2.0, 1.0, 2.0]
    assert found([2, 4, 3.0]) == [1.0, 2.0, 1.5]
    assert find_class_weights(None, "single_label", names, labels) is None
    for given, message in (
        ({"d": 1}, "names 'd', which is no class; there are a, b, c"),
        ([1, 2], "has 2 numbers, but there are 3 classes"),
        ([1, 2, 0], "the weight of 'c' must be a number above 0, got 0"),
        ("balance", "must be 'balanced', a list"),
    ):
        with pytest.raises(InputError, match=message):
            found(given)
    with pytest.raises(InputError, match="'balanced' is for one class"):
        found("balanced", "multi_label")
    with pytest.raises(InputError, match="regression, which has no classes"):
        found([1, 2, 3], "regression")


def test_rows_longer_than_the_encoder_reads_are_refused(folder):
    with pytest.raises(InputError, match="max_length is 17, but the encoder reads 16 tokens at most"):
        make_task(folder, data={"max_length": 17})


def test_a_wrong_choice_is_refused(folder):
    with pytest.raises(ValueError, match="objective must be one of single_label, multi_label, regression, got 'multi'"):
        ClassificationConfig(data=None, encoder=SMALL_ENCODER, objective="multi")
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        ClassificationConfig(data=None, encoder=SMALL_ENCODER, dropout=1)
    with pytest.raises(InputError, match="regression, which has none"):
        make_task(folder, "regression", data={"class_names": ["a", "b"]})


@pytest.mark.parametrize("weights", [None, "balanced", {"number": 5}])
def test_a_trained_model_is_evaluated_as_it_was_trained_though_its_other_files_are_gone(folder, tmp_path, weights):
    train = write_examples(tmp_path / "train.jsonl", [("a cat", "x"), ("a dog", "number"), ("red", "x"), ("blue", "c")])
    content = b"\r\n".join(piece.encode() for piece in VOCABULARY.pieces)  # other bytes than the run will write
    (tmp_path / "words.txt").write_bytes(content)
    files = {"train": train, "vocabulary": f"{tmp_path}/words.txt"}
    files["held_out"] = write_examples(tmp_path / "dev.jsonl", [("a cat", "x"), ("a dog", "number")])
    config = make_config(folder, data=files, class_weights=weights)
    trained = config.open(None, report=lambda line: None)
    directory = trained_directory(tmp_path / "run", trained)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "words.txt").unlink()
    for examples in ("held_out", False):
        task = config.open(directory, report=lambda line: None, examples=examples)
        assert task.objective.class_names == ("c", "number", "x")
        assert task.vocabulary_sha256 == trained.vocabulary_sha256 and task.data.lower_case is True
    task = config.open(directory, report=lambda line: None, examples="held_out")
    assert task.data.labels["held_out"].tolist() == [2, 1]
    expected = trained.objective.class_weights
    assert (task.objective.class_weights is None) == (expected is None)
    np.testing.assert_array_equal(task.objective.class_weights, expected)
    assert task.has_evaluation and task.tokens_per_example == 16


def test_a_trained_model_is_not_taken_for_another(folder, tmp_path):
    directory = trained_directory(tmp_path, make_task(folder))
    for options, message in (
        (
            {"objective": "multi_label", "data": {"label_column": "main"}},
            "objective is 'multi_label', .* 'single_label'",
        ),
        ({"pooling": "max"}, "pooling is 'max', but the model in .* was trained with 'cls'"),
        (
            {"data": {"class_names": ["number", "animal", "colour"]}},
            "class_names is .* trained with .*'animal', 'colour'",
        ),
        ({"class_weights": "balanced"}, "there is no .*class_weights.json .* give numbers, or None"),
    ):
        with pytest.raises(InputError, match=message):
            make_config(folder, **options).open(directory, report=lambda line: None, examples="held_out")


def run_in(directory, task, best_metric=None):
    """Returns an `Assembly` as far as `loop.train` looks at it before it makes a model."""
    return types.SimpleNamespace(
        run=types.SimpleNamespace(best_metric=best_metric),
        config=types.SimpleNamespace(text="now"),
        config_differences=lambda text: [],
        cluster=types.SimpleNamespace(is_chief=True),
        directory=directory,
        task=task,
    )


@pytest.mark.parametrize("manifest_is_damaged", [False, True])
def test_a_refused_run_changes_no_file_of_the_one_before(folder, tmp_path, manifest_is_damaged):
    directory = trained_directory(tmp_path / "run", make_task(folder))
    storage.write_text(directory.config_path, "before")
    if manifest_is_damaged:  # then the one before knows
        storage.make_folder(tmp_path / "run/checkpoints/step_00000002")
        for name in ("manifest.json", "COMMITTED"):
            (tmp_path / "run/checkpoints/step_00000002" / name).write_text("{")
    other = write_examples(tmp_path / "train.jsonl", [("a cat", "x"), ("a dog", "y")])
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in [*VOCABULARY.pieces, "more"]))
    task = make_task(folder, data={"train": other, "held_out": None, "vocabulary": f"{tmp_path}/vocab.txt"})

    def content():
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    before = content()
    with pytest.raises(InputError, match="was started on other data than this"):
        loop.train(run_in(directory, task))
    with pytest.raises(InputError, match="no 'f1', but accuracy, f1_macro, loss, matthews_correlation"):
        loop.train(run_in(directory, make_task(folder), "f1"))
    assert content() == before


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        ("single_label", "accuracy, f1_macro, loss, matthews_correlation"),
        ("multi_label", "accuracy, exact_match, f1_macro, f1_micro, loss"),
        ("regression", "loss, mean_squared_error, pearson_correlation, spearman_correlation"),
    ],
)
def test_a_metric_that_evaluation_will_not_give_is_known_before_training(folder, objective, names):
    task = make_task(folder, objective)
    for name in names.split(", "):
        check_best_metric(name, task)
    with pytest.raises(InputError, match=f"evaluation gives no 'f1_makro', but {names}"):
        check_best_metric("f1_makro", task)


def test_a_task_whose_answers_make_no_table_says_so():
    with pytest.raises(InputError, match=r"make no table: give --output a name that ends in .jsonl"):
        small_task().prediction_table([])


def test_the_description_of_the_model_names_the_classes(folder):
    description = make_task(folder, pooling="mean").description()
    assert description.labels == ("animal", "colour", "number") and description.pooling == "mean"
    assert description.objective == "single_label" and description.pieces == VOCABULARY.pieces
