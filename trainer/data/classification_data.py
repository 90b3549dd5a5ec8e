"""The data of a classification run: labelled texts and a vocabulary, read and checked before training."""

import dataclasses
import functools
import hashlib
import json
import os
from typing import Literal

import numpy as np

from trainer.data.evaluation_rows import evaluation_dataset
from trainer.data.labelled_rows import encode_texts, expand_columns
from trainer.data.labelled_texts import (
    TextFormat,
    find_class_names,
    label_numbers,
    read_labelled_texts,
    suspected_headers,
)
from trainer.data.lane_order import check_integer, example_locations, fixed_permutation, plan_lanes
from trainer.data.lanes import training_dataset
from trainer.data.memory_rows import MemoryCorpus
from trainer.data.tokenizer_file import tokenizer_of
from trainer.errors import InputError

# With `lanes` "auto": as many lanes as prepared data has by default, fewer where a lane would have few rows. An epoch
# leaves out fewer rows than there are lanes (other ones each time): with 16 in each, at most one in 16.
_MOST_LANES = 64
_LEAST_ROWS_PER_LANE = 16
_SHOWN_CLASSES = 12
# With fewer examples of each class on average, another column, or something else, may have been taken for the labels.
_LEAST_EXAMPLES_PER_CLASS = 3
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationData:
    """Files of labelled texts, and how they become rows. What columns and formats mean: see `TextFormat`.

    Args:
        train: files to train on: a path, a pattern, or a list of them.
        vocabulary: vocabulary file, a piece a line, or a `tokenizer.json`; None for that of the weights a run starts from.
        held_out: files to evaluate on; None for none.
        text_column: column of the text.
        pair_column: column of the second text; None where examples are single texts.
        label_column: column of the label.
        column_names: names of the columns of tables without a header line.
        file_format: `auto`, `tsv`, `csv`, `jsonl`, or `label_first`.
        label_separator: what separates several labels in a cell, for the objective `multi_label`.
        class_names: the classes in order; None for those of the training files, sorted.
        lower_case: whether the vocabulary is of lower-cased text without accents; None for what is known of the weights a
            run starts from, else yes. A `tokenizer.json` knows it itself.
        max_length: most tokens in a row; longer texts are cut.
        lanes: number of lanes, part of the order; a multiple of every number of hosts the run will ever have. `auto`
            takes 64, fewer for small sets. With more lanes than examples, examples are repeated.
        block_rows: rows that are shuffled together, part of the order; `auto` goes by the size of the data.
    """

    train: object
    vocabulary: str | None = None
    held_out: object = None
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    column_names: tuple | None = None
    file_format: Literal["auto", "tsv", "csv", "jsonl", "label_first"] = "auto"
    label_separator: str = ","
    class_names: tuple | None = None
    lower_case: bool | None = None
    max_length: int = 128
    lanes: object = "auto"
    block_rows: object = "auto"

    def __post_init__(self):
        self.text_format()  # refuses what cannot be
        _check_files("train", self.train)
        if self.held_out is not None:
            _check_files("held_out", self.held_out)

    @property
    def paths(self):
        """What a run reads: paths and patterns."""
        vocabulary = () if self.vocabulary is None else (str(self.vocabulary),)
        return (*vocabulary, *self.sources("train"), *self.evaluation_paths)

    @property
    def evaluation_paths(self):
        """What evaluation of a trained model reads: paths and patterns."""
        return self.sources("held_out")

    def sources(self, split):
        """Returns the paths and patterns of a split."""
        files = getattr(self, split)
        files = files if isinstance(files, list | tuple) else () if files is None else (files,)
        return tuple(map(str, files))

    def text_format(self):
        """Returns the `TextFormat` of the files."""
        names = [field.name for field in dataclasses.fields(TextFormat)]
        return TextFormat(**{name: getattr(self, name) for name in names})

    def open(
        self,
        objective,
        vocabulary,
        lower_case=True,
        report=print,
        vocabulary_size=None,
        *,
        splits=SPLITS,
        trained_classes=None,
    ):
        """Reads and checks the files; texts become token ids when they are first asked for.

        Args:
            objective: `single_label`, `multi_label` or `regression`.
            vocabulary: the `Vocabulary`.
            lower_case: whether it is of lower-cased text.
            report: callable that shows one line to a person.
            vocabulary_size: number of token ids of the model; None for as many as there are pieces.
            splits: which of `train` and `held_out` are read; both, or what a trained model needs.
            trained_classes: tuple of the classes of a trained model; None for those of the settings or the training data.

        Returns:
            `OpenedTexts`.

        Raises:
            InputError: if something is missing or cannot be read, naming file and line.
        """
        if self.lanes != "auto":
            check_integer("lanes", self.lanes, 1)
        text_format = self.text_format()
        texts = {
            split: read_labelled_texts(self.sources(split), text_format, objective)
            for split in splits
            if self.sources(split)
        }
        class_names, known_from = trained_classes, "the model"
        if trained_classes is None:
            class_names = self._class_names(texts["train"], objective)
            known_from = "training data" if self.class_names is None else "class_names"
            self._warn(texts["train"], class_names, report)
        labels = {split: label_numbers(found, class_names, objective, known_from) for split, found in texts.items()}
        purposes = {"train": "train on", "held_out": "evaluate on"}
        numbers = [f"{len(texts.get(split, ())):,} examples to {purposes[split]}" for split in splits]
        if numbers:
            report(f"read {', '.join(numbers)}")
        return OpenedTexts(
            settings=self,
            objective=objective,
            pieces=vocabulary,
            vocabulary_size=vocabulary_size or len(vocabulary),
            lower_case=lower_case,
            class_names=class_names,
            texts=texts,
            labels=labels,
        )

    def _warn(self, train, class_names, report):
        """Tells of labels that look as if something else had been taken for them."""
        if not class_names:
            return
        for row in suspected_headers(train) if self.column_names is not None else ():
            report(
                f"warning: {train.place(row)}: no other line has its label, {train.labels[row]!r}: is it a header? Then "
                "remove column_names, or the line"
            )
        if self.class_names is None and len(train) < _LEAST_EXAMPLES_PER_CLASS * len(class_names):
            report(
                f"warning: {len(class_names):,} classes for {len(train):,} examples: is {self.label_column!r} the label "
                "(label_column, label_separator, file_format)?"
            )

    def _class_names(self, train, objective):
        if objective == "regression":
            if self.class_names is not None:
                raise InputError("class_names are given, but the objective is regression, which has none.")
            return ()
        if self.class_names is None:
            names = find_class_names(train.labels)
            source = f"{', '.join(train.paths)}: the column {self.label_column!r}"
        else:
            names, source = tuple(str(name) for name in self.class_names), "class_names"
            if len(set(names)) < len(names):
                raise InputError(f"class_names has a name twice: {', '.join(names)}")
        least = 2 if objective == "single_label" else 1
        if len(names) < least:
            found = f"one class alone, {names[0]!r}" if names else "no class"
            raise InputError(f"{source} names {found}: there is nothing to tell apart.")
        return names


def _check_files(name, files):
    named = files if isinstance(files, list | tuple) else [files]
    if not named or not all(isinstance(path, str | os.PathLike) and str(path) for path in named):
        raise ValueError(f"{name} must be a path, a pattern with *, or a list of them, got {files!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedTexts:
    """Labelled texts that were read, and the rows made of them.

    Attributes:
        settings: the `ClassificationData`.
        objective: `single_label`, `multi_label` or `regression`.
        pieces: the `Vocabulary`.
        vocabulary_size: number of token ids of the model; the vocabulary may have fewer pieces.
        lower_case: whether texts are lower-cased.
        class_names: tuple of names; empty for regression.
        texts: `{split: LabelledTexts}`: `train`, and `held_out` if there are any; where a trained model is evaluated, the
            latter alone, and none where it only answers.
        labels: `{split: array}`, see `label_numbers`.
    """

    settings: ClassificationData
    objective: str
    pieces: object
    vocabulary_size: int
    lower_case: bool
    class_names: tuple
    texts: dict
    labels: dict

    @property
    def pairs(self):
        """Whether examples are two texts."""
        return self.settings.pair_column is not None

    @property
    def sequence_length(self):
        """Tokens in a row: of training, else of evaluation, else the most there may be."""
        return next((encoded.length for encoded in self.encoded.values()), self.settings.max_length)

    @functools.cached_property
    def tokenizer(self):
        """The `Tokenizer` that makes the rows."""
        return tokenizer_of(self.pieces, self.lower_case)

    def encode(self, first, second=None):
        """Returns `EncodedTexts` of texts, cut as those of the files."""
        return encode_texts(self.tokenizer, first, second, max_length=self.settings.max_length)

    @functools.cached_property
    def encoded(self):
        """`{split: EncodedTexts}`, row by row as in the files."""
        return {split: self.encode(texts.first, texts.second) for split, texts in self.texts.items()}

    @functools.cached_property
    def fingerprints(self):
        """A text a split that changes when its rows, their labels or what these mean do."""
        settings = json.dumps([self.class_names, self.objective, self.pieces.sha256, self.lower_case])
        result = []
        for split, encoded in self.encoded.items():
            digest = hashlib.sha256(settings.encode())
            for column in (*encoded.columns().values(), self.labels[split]):
                digest.update(json.dumps([str(column.dtype), column.shape]).encode())
                digest.update(np.ascontiguousarray(column))
            result.append(f"{split} {digest.hexdigest()}")
        return tuple(result)

    @functools.cached_property
    def lanes(self):
        """Number of lanes."""
        lanes = self.settings.lanes
        if lanes == "auto":
            lanes = _MOST_LANES
            while lanes > 1 and lanes * _LEAST_ROWS_PER_LANE > len(self.texts["train"]):
                lanes //= 2
        return lanes

    @functools.cached_property
    def training_order(self):
        """`[rows]` which example each row in memory is: mixed, since files may be sorted, and often enough for all lanes."""
        examples = len(self.texts["train"])
        repeats = -(-self.lanes // examples)
        return fixed_permutation(examples * repeats) % examples

    @functools.cached_property
    def corpus(self):
        """The `MemoryCorpus`: training rows in the order of `training_order`, held-out ones in that of the files."""
        splits = {}
        for split, encoded in self.encoded.items():
            rows = self.training_order if split == "train" else slice(None)
            splits[split] = encoded.columns(rows) | {"labels": self.labels[split][rows]}
        return MemoryCorpus("the files", splits, expand_columns)

    @functools.cached_property
    def plan(self):
        """The `LanePlan`."""
        return plan_lanes([self.corpus], lanes=self.lanes, block_rows=self.settings.block_rows)

    def training_dataset(self, **options):
        """See `trainer.data.lanes.training_dataset`; the order is that of the settings."""
        return training_dataset(self.plan, lanes=self.lanes, **options)

    def evaluation_dataset(self, **options):
        """See `trainer.data.evaluation_rows.evaluation_dataset`; there must be held-out texts."""
        return evaluation_dataset([self.corpus], **options)

    def example_places(self, **options):
        """Returns the file and line of each example, see `trainer.data.lane_order.example_locations`."""
        found = example_locations(self.plan, **options)
        return [self.texts["train"].place(number) for number in self.training_order[found.row]]

    def describe(self, num_examples):
        """Returns `(name, text)` pairs for people: what a run over so many examples sees of the data."""
        lines = []
        for split, texts in self.texts.items():
            encoded = self.encoded[split]
            text = f"{len(texts):,} examples of {int(encoded.num_tokens.mean().round())} tokens on average, rows of "
            text += f"{encoded.length}"
            if encoded.num_truncated:
                text += f", {encoded.num_truncated:,} examples cut to {self.settings.max_length} tokens"
            if split == "train":
                text += f", {num_examples / len(texts):.2f} epochs in all"
                if len(texts) < self.lanes:
                    repeats = len(self.training_order) // len(texts)
                    text += f"; fewer than the {self.lanes} lanes, so each is there {repeats} times"
            lines.append((split, text))
            lines.append((f"{split} labels", self._describe_labels(self.labels[split])))
        return lines

    def _describe_labels(self, labels):
        if self.objective == "regression":
            return f"{labels.min():.4g} to {labels.max():.4g}, mean {labels.mean():.4g}"
        if self.objective == "multi_label":
            counts = labels.sum(axis=0, dtype=np.int64)
        else:
            counts = np.bincount(labels, minlength=len(self.class_names))
        shown = sorted(zip(self.class_names, counts.tolist(), strict=True), key=lambda item: -item[1])[:_SHOWN_CLASSES]
        more = f" and {len(counts) - _SHOWN_CLASSES} more classes" if len(counts) > _SHOWN_CLASSES else ""
        return ", ".join(f"{name}: {count:,}" for name, count in shown) + more
