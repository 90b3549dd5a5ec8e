"""Classifying texts with a trained model: of people, of files, and in a SavedModel."""

import dataclasses
import functools
import os

import numpy as np
import tensorflow as tf

from trainer.data.labelled_rows import expand_columns
from trainer.data.labelled_texts import (
    SUFFIXES,
    is_label,
    read_labelled_texts,
    read_lines,
    split_label,
    without_empty,
)
from trainer.errors import InputError

PAIR_SEPARATOR = "\t"
_BATCH = 32
_LENGTH_STEP = 8
# On a CPU, loading a compiled program takes as long as computing 6,000 tokens, and compiling it as 20,000; layers make all
# of that dearer.
_TOKENS_OF_A_PROGRAM = 8192


def texts_in_file(data, path, report):
    """Returns the texts of a file, pairs with a tab between; tells how it is read.

    Args:
        data: `OpenedTexts`, whose columns a table or JSON lines must have, but for the label.
        path: of the file; see `format_of_input`.
        report: callable that shows one line to a person.
    """
    kind = format_of_input(data.settings, path)
    if kind in ("lines", "label_first"):
        texts = without_empty(read_lines(path), path, report)
        if kind == "label_first":
            return _without_labels(data, texts, path, report)
        report(f"{path} is read as lines of one {'pair' if data.pairs else 'text'} each")
        return texts
    report(f"{path} is read as {kind}")
    found = read_labelled_texts([path], dataclasses.replace(data.settings.text_format(), file_format=kind))
    if found.second is None:
        return found.first
    return [
        PAIR_SEPARATOR.join(text.replace(PAIR_SEPARATOR, " ") for text in pair)
        for pair in zip(found.first, found.second, strict=True)
    ]


def format_of_input(settings, path):
    """Returns how a file of texts is read: as the training files where its suffix is theirs or says nothing.

    Args:
        settings: `ClassificationData`.
        path: of the file.

    Returns:
        `lines` of a text each, or a format of `TextFormat`; with `label_first` labels may be missing.
    """
    suffix, *theirs = (os.path.splitext(name)[1].lower() for name in (path, *settings.sources("train")))
    known = SUFFIXES.get(suffix, "lines")
    is_theirs = suffix in theirs
    if settings.file_format != "auto" and (is_theirs or known in ("lines", "label_first")):
        return settings.file_format
    return "lines" if known == "label_first" and not is_theirs else known


def _without_labels(data, lines, path, report):
    """Returns lines without the labels that they begin with, if all of them do."""
    parts = [split_label(line) for line in lines]
    text_format = data.settings.text_format()
    num_labels = sum(
        bool(rest) and is_label(word, data.objective, data.class_names, text_format) for word, rest in parts
    )
    if lines and num_labels == len(lines):
        report(f"{path} is read as lines of a label and a text each; the labels are left out")
        return [rest for _, rest in parts]
    warning = f"; warning: {num_labels:,} of {len(lines):,} begin with what could be a label" if num_labels else ""
    report(f"{path} is read as lines of one text each, without labels{warning}")
    return lines


def split_pairs(texts):
    """Returns the first and the second texts of pairs with a tab between.

    Raises:
        InputError: naming the text that is no pair.
    """
    first, second = [], []
    for number, text in enumerate(texts):
        parts = text.split(PAIR_SEPARATOR)
        if len(parts) != 2:
            raise InputError(
                f"text {number + 1} is no pair: the model was trained on two texts, give both with a tab between: {text!r}"
            )
        first.append(parts[0])
        second.append(parts[1])
    return first, second


def padded_length(num_tokens, longest):
    """Returns the length of the rows in which so many tokens are computed: 8, 16, ... 64, 80, ... 128, 160, ... 256, ...

    Padding is less than 8 tokens, or than a quarter of the text; models with up to 512 tokens have 20 lengths.
    """
    step = max(_LENGTH_STEP, 1 << max(0, int(num_tokens - 1).bit_length() - 3))
    return min(-(-num_tokens // step) * step, longest)


def batches_by_length(num_tokens, longest):
    """Divides texts into batches of about equal length, in as few shapes as are worth the compilation of their program.

    Args:
        num_tokens: `[texts]` tokens of each.
        longest: length that no row exceeds.

    Returns:
        list of (numbers of texts `[batch]`, length), of which the last of each length is filled up with its last text.
    """
    order = np.argsort(num_tokens, kind="stable")
    lengths, counts = np.unique([padded_length(int(number), longest) for number in num_tokens], return_counts=True)
    ends = np.cumsum(counts)
    size = min(_BATCH, len(order))
    batches, start = [], 0
    for shape in _shapes_worth_compiling(lengths, counts):
        end = int(ends[shape])
        for first in range(start, end, size):
            part = order[first : min(first + size, end)]
            batches.append((np.pad(part, (0, size - len(part)), mode="edge"), int(lengths[shape])))
        start = end
    return batches


def _shapes_worth_compiling(lengths, counts):
    """Chooses lengths such that programs, and texts at the next chosen length, cost the least altogether.

    Args:
        lengths: `[shapes]` in ascending order.
        counts: `[shapes]` how many texts have each.

    Returns:
        list of numbers of shapes, ascending; the last is among them.
    """
    texts = np.concatenate([[0], np.cumsum(counts)])
    costs, chosen = [0], [[]]  # of the texts of the first 0, 1, 2, ... shapes
    for last, length in enumerate(lengths):
        of_last = [costs[first] + (texts[last + 1] - texts[first]) * length for first in range(last + 1)]
        best = int(np.argmin(of_last))
        costs.append(of_last[best] + _TOKENS_OF_A_PROGRAM)
        chosen.append([*chosen[best], last])
    return chosen[-1]


@functools.lru_cache(maxsize=2)
def _program(task, model):
    """Returns the compiled function from rows to probabilities; whoever asks again does not compile again."""

    @tf.function(jit_compile=True)
    def compute(token_ids, segment_ids, document_ids):
        return task.objective.probabilities(model(token_ids, task.segments(segment_ids), document_ids))

    return compute


def classify(task, model, texts, top_k):
    """Classifies texts.

    Args:
        task: `Classification`.
        model: `ClassificationModel`.
        texts: list of strings; of pairs with a tab between.
        top_k: number of classes that are told with their probabilities; None for all.

    Returns:
        list of dicts, one a text: `text`, `text_pair` of pairs, and what `Objective.answer` says.
    """
    first, second = split_pairs(texts) if task.data.pairs else (texts, None)
    encoded = task.data.encode(first, second)

    compute = _program(task, model)
    probabilities = np.zeros((len(texts), task.objective.num_outputs), np.float32)
    for numbers, length in batches_by_length(encoded.num_tokens, encoded.length):
        columns = encoded.columns(numbers)
        columns["token_ids"] = columns["token_ids"][:, :length]
        probabilities[numbers] = compute(**expand_columns(columns)).numpy()
    answers = []
    for number, text in enumerate(first):
        pair = {} if second is None else {"text_pair": second[number]}
        answers.append({"text": text} | pair | task.objective.answer(probabilities[number], top_k))
    return answers


def show_answers(answers, console):
    """Prints what `classify` returned.

    Args:
        answers: list of dicts.
        console: `rich.console.Console`.
    """
    for answer in answers:
        text = " | ".join(answer[name] for name in ("text", "text_pair") if name in answer)
        console.print(text, style="bold", markup=False)
        if "value" in answer:
            console.print(f"  {answer['value']:.4g}", markup=False)
            continue
        listed = "  ".join(f"{name} {probability:.3f}" for name, probability in answer["probabilities"].items())
        labels = f"{', '.join(answer['labels']) or 'none'}:  " if "labels" in answer else ""
        console.print(f"  {labels}{listed}", markup=False)


def answer_table(task, answers):
    """Returns the rows of a table, lists of texts, the header first.

    Args:
        task: `Classification`.
        answers: what `classify` returned.

    Returns:
        the columns `text`, `text_pair` of pairs, then `value`, or `label` (`labels`, with the separator of the data) and
        `probability_NAME` for each class, empty where the answer does not tell it.
    """
    names = ["text", "text_pair"] if task.data.pairs else ["text"]
    if task.config.objective == "regression":
        rows = [[*(answer[name] for name in names), f"{answer['value']:.9g}"] for answer in answers]
        return [[*names, "value"], *rows]
    several = task.config.objective == "multi_label"
    header = [*names, "labels" if several else "label"]
    rows = []
    for answer in answers:
        label = task.data.settings.label_separator.join(answer["labels"]) if several else answer["label"]
        told = answer["probabilities"]
        shown = [f"{told[name]:.6f}" if name in told else "" for name in task.objective.class_names]
        rows.append([*(answer[name] for name in names), label, *shown])
    header += [f"probability_{name}" for name in task.objective.class_names]
    return [header, *rows]


def serving_signatures(task, model):
    """Returns the functions of a SavedModel, for any number of rows of any length that the encoder can read.

    Args:
        task: `Classification`.
        model: `ClassificationModel`.
    """
    rows = tf.TensorSpec([None, None], tf.int32, name="token_ids")
    segments = tf.TensorSpec([None, None], tf.int32, name="segment_ids")
    name = "value" if task.config.objective == "regression" else "probabilities"

    @tf.function(input_signature=[rows, segments])
    def classify_rows(token_ids, segment_ids):
        documents = tf.cast(model.encoder.compute_mask(token_ids), tf.int32)
        logits = model(token_ids, task.segments(segment_ids), documents)
        probabilities = task.objective.probabilities(logits)
        return {name: probabilities[:, 0] if name == "value" else probabilities}

    @tf.function(input_signature=[rows, segments])
    def encode(token_ids, segment_ids):
        documents = tf.cast(model.encoder.compute_mask(token_ids), tf.int32)
        hidden = model.encoder(token_ids, task.segments(segment_ids), documents)
        return {"hidden": tf.cast(hidden, tf.float32)}

    return {"serving_default": classify_rows.get_concrete_function(), "encode": encode.get_concrete_function()}
