"""Data preparation: from a corpus to a prepared data set, in steps that can be interrupted at any moment.

Files are divided into units; every unit is tokenized into a spill with a section for each shard (map); every shard is
packed from its sections of all spills (reduce). What a document's shard and split are, a hash of its text decides. So
memory is bounded by a few shards, and the shards are the same bytes however many processes worked, on one machine or,
through Apache Beam, on many. Near-duplicates are found between the two steps, see `near_duplicates`.
"""

import collections
import dataclasses
import hashlib
import json
import math
import time

from trainer import storage
from trainer.data import (
    beam_workers,
    filters,
    merging,
    near_duplicates,
    packing,
    preparation_work,
    python_docs,
    spills,
)
from trainer.data.documents import CorpusFile, ReadingOptions, divide_into_units, find_files, text_bytes
from trainer.data.manifests import MANIFEST_NAME, Manifest, Shard, load_manifest, verify_data_set
from trainer.data.records import RowFormat
from trainer.data.vocabulary import file_content, learn_vocabulary, load_vocabulary
from trainer.data.workers import Workers, available_cores
from trainer.errors import InputError

SOURCES = ("python_docs",)
VOCABULARY_NAME = "vocab.txt"
RECORD_NAME = "preparation.json"
WORK_FOLDER = "unfinished"
DEFAULT_VOCABULARY_SIZE = 8192
_VERSION = 1  # of what the settings mean: raise it when the same settings would give other rows
_SHARD_BYTES = 64 << 20
_PARTITION_TEXT_BYTES = (
    32 << 20
)  # whose entries a partition holds, which are as many bytes, or more for short documents
_BYTES_PER_TOKEN = 3.5  # of text: English has 4.2 with a vocabulary of 30,000 pieces, Chinese 2.8
_COUNTED_BYTES = 256 << 20  # of text for learning a vocabulary: more changes little but takes long
_SMALL_BYTES = 2 << 20  # of text: less is done before a worker process has started


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparationSettings:
    """Everything that decides what the prepared data hold.

    Args:
        inputs: files, folders or patterns, local or `gs://`; see `documents.find_files`.
        source: a corpus that is at hand everywhere instead of `inputs`: `python_docs`.
        python_packages: packages whose docstrings make up `python_docs`; `stdlib` is the standard library.
        vocabulary: a `vocab.txt`; None learns one from the corpus.
        vocabulary_size: pieces of a vocabulary that is learned.
        lower_case: whether to lower-case the text and strip accents ("uncased").
        sequence_length: tokens in a row.
        packing: `full_sentences`, `sentence_pair_nsp` or `sentence_pair_sop`.
        short_rows: share of the sentence pairs made shorter than a row.
        held_out: share of the documents kept from training, for evaluation.
        num_shards: training shards; None makes shards of about 64 MB.
        compress: whether to gzip the shards (smaller, but without seeking in them).
        text_field, one_document_per_file, document_start, invalid_utf8: see `documents.ReadingOptions`.
        keep_duplicates: whether documents of the same text are kept.
        near_duplicates: similarity from 0.5 to 1 from which on documents are taken for near-duplicates, of which one is
            kept, see the module `near_duplicates`; None keeps all.
        min_words, max_words, min_characters, max_characters, max_symbol_share, max_digit_share, languages: what
            documents are dropped, see `filters.DocumentFilters`.
        shuffle_documents: whether the documents of a shard come in a random order instead of the corpus's.
        seed: of all random choices.
    """

    inputs: tuple = ()
    source: str | None = None
    python_packages: tuple = python_docs.DEFAULT_PACKAGES
    vocabulary: str | None = None
    vocabulary_size: int = DEFAULT_VOCABULARY_SIZE
    lower_case: bool = True
    sequence_length: int = 128
    packing: str = "full_sentences"
    short_rows: float = 0.1
    held_out: float = 0.01
    num_shards: int | None = None
    compress: bool = False
    text_field: str = "text"
    one_document_per_file: bool = False
    document_start: str | None = None
    invalid_utf8: str = "refuse"
    keep_duplicates: bool = False
    shuffle_documents: bool = True
    seed: int = 0
    near_duplicates: float | None = None
    min_words: int | None = None
    max_words: int | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    max_symbol_share: float | None = None
    max_digit_share: float | None = None
    languages: tuple = ()

    def __post_init__(self):
        if isinstance(self.inputs, str):
            object.__setattr__(self, "inputs", (self.inputs,))
        for name in ("inputs", "python_packages"):
            object.__setattr__(self, name, tuple(str(each) for each in getattr(self, name)))
        if self.source is not None and self.source not in SOURCES:
            raise InputError(f"source must be one of {', '.join(SOURCES)}, got {self.source!r}")
        if bool(self.inputs) == bool(self.source):
            raise InputError(
                "give either inputs (files, folders, patterns) or a source (python_docs), "
                + ("not both." if self.inputs else "at least one of them.")
            )
        if self.packing not in packing.MODES:
            raise InputError(f"packing must be one of {', '.join(packing.MODES)}, got {self.packing!r}")
        shortest = 4 if self.packing == "full_sentences" else 8
        if not shortest <= self.sequence_length <= 65535:
            raise InputError(
                f"sequence_length must be from {shortest} to 65535 for {self.packing}, got {self.sequence_length}"
            )
        for name, low, high in (("held_out", 0.0, 0.5), ("short_rows", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is a share from {low:g} to {high:g}, got {getattr(self, name)}")
        if self.num_shards is not None and self.num_shards < 1:
            raise InputError(f"num_shards must be at least 1, got {self.num_shards}")
        if self.near_duplicates is not None:
            near_duplicates.check_threshold(self.near_duplicates)
        object.__setattr__(self, "languages", self.filters().languages)  # validates too
        self.reading_options()  # validates

    def reading_options(self):
        """Returns the `ReadingOptions` of the inputs; the files of `python_docs` are our own."""
        if self.source:
            return ReadingOptions()
        return ReadingOptions(self.text_field, self.one_document_per_file, self.document_start, self.invalid_utf8)

    def filters(self):
        """Returns the `DocumentFilters`."""
        names = [field.name for field in dataclasses.fields(filters.DocumentFilters)]
        return filters.DocumentFilters(**{name: getattr(self, name) for name in names})

    def decisive(self):
        """Returns the settings that decide what is made, as a dictionary.

        Those that came later than the first data sets are only in it where they are used: rows made without them keep
        their bytes.
        """
        later = {"near_duplicates", *(field.name for field in dataclasses.fields(filters.DocumentFilters))}
        unused = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) == field.default}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in later & unused}


def ignore_progress(phase, done, total, unit, tokens):
    """A progress function that shows nothing; `prepare` says what it is called with."""


def prepare(
    settings, output_folder, *, num_workers=None, beam=None, work_folder=None, overwrite=False, progress=ignore_progress
) -> Manifest:
    """Prepares a data set; continues where an interrupted call with the same settings stopped.

    Args:
        settings: `PreparationSettings`.
        output_folder: where the shards, `vocab.txt` and `manifest.json` go; local or `gs://`.
        num_workers: processes to work in; None for one per core; 0 works in this process (which then initialises
            TensorFlow's devices: not before a trainer has configured them).
        beam: `beam_workers.BeamOptions` to work through Apache Beam instead.
        work_folder: for intermediate files, about half the size of the text; None for a folder inside `output_folder`.
        overwrite: whether to replace a data set of other settings.
        progress: called as `progress(phase, done, total, unit, tokens)` with the name of the phase, the work done and
            in all in units of `unit` (`bytes`, `pieces`, `parts` or `shards`), and the tokens made in this phase.

    Returns:
        The `Manifest`, already written.

    Raises:
        InputError: if the settings or the corpus are at fault, or the folder holds data of other settings.
        StorageFailed: if storage fails, e.g. the disk is full; what is finished is kept.
        TrainingFailed: if a worker process is killed, or Beam's job fails; what is finished is kept.
    """
    output_folder = str(output_folder)
    started = time.monotonic()
    corpus = find_files(settings.inputs) if settings.inputs else python_docs.corpus_version(settings.python_packages)
    record = _record(settings, corpus)
    if beam is not None:
        beam.check_paths([output_folder, *settings.inputs, *([work_folder] if work_folder else [])])
    if (finished := _open_output(output_folder, record, overwrite)) is not None:
        return finished
    # A folder of our own: what lies in it belongs to these settings, and nothing else is removed with it.
    work_root = str(work_folder or storage.join(output_folder, WORK_FOLDER))
    key = hashlib.sha256(json.dumps([output_folder, record]).encode("utf-8")).hexdigest()[:16]
    work_folder = storage.join(work_root, key)
    storage.make_folder(work_folder)
    size = text_bytes(corpus) if settings.inputs else None
    with _start_workers(num_workers, beam, work_folder) as workers:
        run = _Run(settings, output_folder, work_folder, workers, progress)
        if settings.source:
            corpus = run.extract_documentation()
            size = text_bytes(corpus)
        units = divide_into_units(corpus, settings.reading_options())
        vocabulary = run.vocabulary(units)
        row_format = RowFormat.for_vocabulary(settings.sequence_length, len(vocabulary))
        bands = run.bands(size)
        assignment, paths, information = run.tokenize(units, row_format, size, bands)
        source = run.merge("units", assignment, paths, bands.num_partitions if bands else 0)
        dropped = run.find_near_duplicates(assignment, source, bands) if bands else None
        manifest = run.make_shards(vocabulary, row_format, assignment, source, dropped, information, record)
    seconds = time.monotonic() - started
    tokens = sum(each["tokens"] for each in information)
    manifest.summary.update(seconds=round(seconds, 2), tokens_per_second=round(tokens / seconds), **workers.description)
    manifest.save(output_folder)
    storage.remove(work_folder)
    if work_root == storage.join(output_folder, WORK_FOLDER):
        storage.remove(work_root)
    return manifest


def _start_workers(num_workers, beam, work_folder):
    """The workers of a preparation, a context manager."""
    if beam is not None:
        return beam_workers.BeamWorkers(beam, storage.join(work_folder, "beam"))
    return Workers(available_cores() if num_workers is None else num_workers)


def build_vocabulary(settings, work_folder, *, num_workers=None, progress=ignore_progress):
    """Learns a vocabulary from a corpus.

    Args:
        settings: `PreparationSettings`; only those of the corpus and the vocabulary matter.
        work_folder: for intermediate files.
        num_workers, progress: see `prepare`.

    Returns:
        `Vocabulary`, the one that `prepare` would learn.
    """
    corpus = find_files(settings.inputs)
    with _start_workers(num_workers, None, work_folder) as workers:
        run = _Run(settings, work_folder, work_folder, workers, progress)
        if settings.source:
            corpus = run.extract_documentation()
        return run.learn(divide_into_units(corpus, settings.reading_options()))


def is_small(settings):
    """Returns whether a corpus is so small that starting worker processes would take longer than the work."""
    return bool(settings.inputs) and text_bytes(find_files(settings.inputs)) < _SMALL_BYTES


def _record(settings, corpus):
    """What a data set is made from, as JSON has it: to tell whether to continue or to refuse."""
    files = [dataclasses.astuple(file) for file in corpus] if settings.inputs else corpus
    record = {"version": _VERSION, "settings": settings.decisive(), "corpus": files}
    if settings.languages:
        record["language_identifier"] = filters.language_identifier_version()
    if settings.vocabulary is not None:
        record["vocabulary_sha256"] = load_vocabulary(settings.vocabulary).sha256
    return json.loads(json.dumps(record))


def _open_output(folder, record, overwrite):
    """Makes ready the output folder; returns the manifest if the data set is already there."""
    path = storage.join(folder, RECORD_NAME)
    names = storage.listing(folder)
    ours = [name for name in names if name in (MANIFEST_NAME, RECORD_NAME, VOCABULARY_NAME, WORK_FOLDER)]
    ours += [name for name in names if ".tfrecord" in name]
    if RECORD_NAME in names:
        try:
            before = storage.read_json(path)
        except ValueError:
            before = {}
        differences = _differences(before, record)
        if not differences:
            if MANIFEST_NAME not in names:
                return None
            manifest = load_manifest(folder)
            verify_data_set(folder, manifest, checksums=False)
            return manifest
        if not overwrite:
            raise InputError(
                f"{folder} holds data prepared otherwise: {'; '.join(differences)}. "
                "Choose another folder, or replace the data there with --overwrite."
            )
    elif not overwrite and ours:
        raise InputError(
            f"{folder} holds {ours[0]}, but no {RECORD_NAME} that says how it was made. "
            "Choose another folder, or replace what is there with --overwrite."
        )
    for name in sorted(ours, key=lambda name: name != MANIFEST_NAME):  # first what says that the rest is whole
        storage.remove(storage.join(folder, name))
    storage.make_folder(folder)
    storage.write_json(path, record)
    return None


def _differences(before, now):
    """What differs between two records, in words."""
    result = []
    if before.get("version") != now["version"]:
        result.append("it was made by another version of this program")
    old, new = before.get("settings", {}), now["settings"]
    for name in old | new:
        if old.get(name) != new.get(name):
            result.append(f"{name} was {old.get(name)!r}, now {new.get(name)!r}")
    if before.get("language_identifier") != now.get("language_identifier") and not result:
        result.append(f"languages were told by {before['language_identifier']}, now {now['language_identifier']}")
    if before.get("vocabulary_sha256") != now.get("vocabulary_sha256") and not result:
        result.append("the vocabulary file has other content")
    if before.get("corpus") != now["corpus"] and not result:
        if isinstance(now["corpus"], dict):
            result.append(f"the packages were {before.get('corpus')}, now {now['corpus']}")
        else:
            old_files, new_files = (
                {file[0]: file for file in each.get("corpus", []) if isinstance(file, list)} for each in (before, now)
            )
            changed = sorted(path for path in old_files | new_files if old_files.get(path) != new_files.get(path))
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            result.append(f"the input files changed ({changed[0] if changed else 'their order'}{more})")
    return result


class _Run:
    """One preparation: its settings, places and workers."""

    def __init__(self, settings, output_folder, work_folder, workers, progress):
        self._settings = settings
        self._output = output_folder
        self._work = work_folder
        self._workers = workers
        self._progress = progress

    def _work_path(self, name):
        return storage.join(self._work, name)

    def extract_documentation(self):
        """Writes the python_docs corpus to the work folder; returns its files."""
        parts = python_docs.divide(self._settings.python_packages)
        paths = [self._work_path(f"python_docs-{number:05d}.jsonl") for number in range(len(parts))]
        there = set(storage.listing(self._work))
        jobs = [
            preparation_work.ExtractionJob(tuple(part), path)
            for part, path in zip(parts, paths, strict=True)
            if path.rsplit("/", 1)[-1] not in there
        ]
        done = len(parts) - len(jobs)
        self._progress("reading docstrings", done, len(parts), "parts", 0)
        workers = self._workers if self._workers.on_this_machine else Workers(0)
        for _ in workers.run(preparation_work.extract_documentation, jobs):
            done += 1
            self._progress("reading docstrings", done, len(parts), "parts", 0)
        return tuple(CorpusFile(path, storage.size(path), 0) for path in paths)

    def vocabulary(self, units):
        """Returns the vocabulary, learned if need be, and leaves it in the output folder."""
        path = storage.join(self._output, VOCABULARY_NAME)
        if not storage.exists(path):
            if self._settings.vocabulary is not None:
                content = storage.read_bytes(self._settings.vocabulary)
            else:
                content = file_content(self.learn(units).pieces)
            storage.write_bytes(path, content)
        return load_vocabulary(path)

    def learn(self, units):
        """Learns a vocabulary from units, of a large corpus from an even sample of them."""
        every = max(1, math.ceil(sum(unit.bytes for unit in units) / _COUNTED_BYTES))
        units = units[::every]
        jobs = [
            preparation_work.CountingJob(
                unit,
                self._settings.reading_options(),
                self._settings.lower_case,
                most_characters=_COUNTED_BYTES,
                filters=self._settings.filters(),
            )
            for unit in units
        ]
        total, done, counts = sum(unit.bytes for unit in units), 0, {}
        self._progress("counting words", 0, total, "bytes", 0)
        for place, found in self._workers.run(preparation_work.count_words, jobs):
            for word, count in found.items():
                counts[word] = counts.get(word, 0) + count
            done += units[place].bytes
            self._progress("counting words", done, total, "bytes", 0)
        if not counts and self._settings.filters().active:
            raise InputError("the filters leave no words of the corpus to learn a vocabulary from. Ask less.")
        size = self._settings.vocabulary_size
        phase = "learning the vocabulary"
        vocabulary = learn_vocabulary(
            counts, size, progress=lambda made: self._progress(phase, made, size, "pieces", 0)
        )
        self._progress(phase, len(vocabulary), len(vocabulary), "pieces", 0)
        return vocabulary

    def bands(self, size):
        """Returns the `Bands` by which near-duplicates are found in so many bytes of text; None to keep them."""
        if self._settings.near_duplicates is None:
            return None
        return near_duplicates.Bands(self._settings.near_duplicates, max(1, round(size / _PARTITION_TEXT_BYTES)))

    def tokenize(self, units, row_format, size, bands):
        """Tokenizes all units; returns the assignment, the paths of all spills, and the information of each unit."""
        settings = self._settings
        estimate = size / _BYTES_PER_TOKEN / row_format.sequence_length * row_format.stride
        train = settings.num_shards or max(1, round(estimate / _SHARD_BYTES))
        held_out = max(1, round(train * settings.held_out)) if settings.held_out else 0
        assignment = preparation_work.Assignment(round(settings.held_out * 2**64), train, held_out)
        paths, information = self._tokenize_into(assignment, units, row_format, bands)
        documents = sum(each["documents"] for each in information)
        if not documents:
            dropped = _dropped(information)
            raise InputError(
                "the corpus holds no text: every document is empty."
                if not dropped
                else "the filters leave nothing of the corpus: "
                + ", ".join(f"{count:,} documents {filters.REASONS[reason]}" for reason, count in dropped.items())
                + ". Ask less."
            )
        if held_out and documents > 1 and not any(each["held_out_documents"] for each in information):
            # A corpus so small that chance left nothing to evaluate on: hold out the document with the smallest hash.
            smallest = min(each["smallest_hash"] for each in information if each["smallest_hash"] is not None)
            assignment = dataclasses.replace(assignment, held_out_below=smallest + 1)
            paths, information = self._tokenize_into(assignment, units, row_format, bands)
        units_spills = map(spills.paths_of_unit, paths, information)
        return assignment, tuple(path for paths_of_unit in units_spills for path in paths_of_unit), information

    def _tokenize_into(self, assignment, units, row_format, bands):
        settings = self._settings
        name = f"{assignment.held_out_below:016x}"
        paths = tuple(self._work_path(f"unit-{name}-{number:06d}.spill") for number in range(len(units)))
        information = spills.read_information_of_all(self._work, paths)
        missing = [place for place, found in enumerate(information) if found is None]
        jobs = [
            preparation_work.TokenizingJob(
                units[place],
                settings.reading_options(),
                settings.filters(),
                bands,
                storage.join(self._output, VOCABULARY_NAME),
                settings.lower_case,
                settings.packing != "full_sentences",
                row_format.id_bytes,
                assignment,
                paths[place],
            )
            for place in missing
        ]
        total = sum(unit.bytes for unit in units)
        done = total - sum(units[place].bytes for place in missing)
        tokens = sum(each["tokens"] for each in information if each is not None)
        self._progress("tokenizing", done, total, "bytes", tokens)
        for number, found in self._workers.run(preparation_work.tokenize_unit, jobs):
            information[missing[number]] = found
            done += units[missing[number]].bytes
            tokens += found["tokens"]
            self._progress("tokenizing", done, total, "bytes", tokens)
        return paths, information

    def merge(self, kind, assignment, paths, more_sections=0):
        """Merges spills, which have a section for each shard and some more, if they are very many.

        Returns:
            What the sections are read from, see `merging`.
        """
        stem = self._work_path(f"merged-{kind}-{assignment.held_out_below:016x}")
        source, jobs = merging.plan(paths, assignment.num_shards + more_sections, stem)
        self._do("merging", merging.merge, jobs)
        return source

    def _do(self, phase, function, jobs):
        """Does those of the jobs whose file at `path` an earlier run did not write."""
        there = set(storage.listing(self._work)) if jobs else set()
        missing = [job for job in jobs if job.path.rsplit("/", 1)[-1] not in there]
        done = len(jobs) - len(missing)
        if jobs:
            self._progress(phase, done, len(jobs), "parts", 0)
        for _ in self._workers.run(function, missing):
            done += 1
            self._progress(phase, done, len(jobs), "parts", 0)

    def find_near_duplicates(self, assignment, source, bands):
        """Finds the near-duplicates among the documents; returns what their hashes are read from."""
        name = f"{assignment.held_out_below:016x}"
        jobs = [
            near_duplicates.PartitionJob(
                section=assignment.num_shards + number,
                source=source,
                least_equal=bands.least_equal,
                assignment=assignment,
                path=self._work_path(f"near-duplicates-{name}-{number:06d}.spill"),
            )
            for number in range(bands.num_partitions)
        ]
        self._do("finding near-duplicates", near_duplicates.find_near_duplicates, jobs)
        return self.merge("near-duplicates", assignment, [job.path for job in jobs])

    def make_shards(self, vocabulary, row_format, assignment, source, dropped, information, record):
        """Makes all shards from the spills; returns the manifest."""
        settings = self._settings
        decisive = {name: value for name, value in record["settings"].items() if name not in ("inputs", "vocabulary")}
        content = (record["version"], decisive, vocabulary.sha256, [each["documents_sha256"] for each in information])
        fingerprint = hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()
        counts = {"train": assignment.train_shards, "held_out": assignment.held_out_shards}
        names = [
            f"{split}-{number:05d}-of-{count:05d}.tfrecord" + (".gz" if settings.compress else "")
            for split, count in counts.items()
            for number in range(count)
        ]
        jobs = [
            self._shard_job(number, name, fingerprint, source, dropped, row_format) for number, name in enumerate(names)
        ]
        there = {*storage.listing(self._work), *storage.listing(self._output)}
        results = [self._finished_shard(job) if {job.name, f"{job.name}.json"} <= there else None for job in jobs]
        missing = [place for place, found in enumerate(results) if found is None]
        done = len(jobs) - len(missing)
        tokens = sum(each["row_tokens"] for each in results if each is not None)
        self._progress("writing shards", done, len(jobs), "shards", tokens)
        for number, found in self._workers.run(preparation_work.make_shard, [jobs[place] for place in missing]):
            results[missing[number]] = found
            done += 1
            tokens += found["row_tokens"]
            self._progress("writing shards", done, len(jobs), "shards", tokens)
        shards = [Shard(**result["shard"]) for result in results]
        train = assignment.train_shards
        return Manifest(
            fingerprint=fingerprint,
            sequence_length=row_format.sequence_length,
            id_bytes=row_format.id_bytes,
            packing=settings.packing,
            vocabulary=VOCABULARY_NAME,
            vocabulary_size=len(vocabulary),
            vocabulary_sha256=vocabulary.sha256,
            lower_case=settings.lower_case,
            compression="GZIP" if settings.compress else None,
            splits={"train": tuple(shards[:train]), "held_out": tuple(shards[train:])},
            summary=_summary(settings, information, results, train, row_format.sequence_length),
        )

    def _shard_job(self, number, name, fingerprint, source, dropped, row_format):
        settings = self._settings
        salt = hashlib.sha256(f"{fingerprint} {name}".encode()).digest()
        return preparation_work.ShardJob(
            number=number,
            name=name,
            folder=self._output,
            result=self._work_path(f"{name}.json"),
            source=source,
            near_duplicates=dropped,
            vocabulary=storage.join(self._output, VOCABULARY_NAME),
            row_format=row_format,
            packing_mode=settings.packing,
            short_rows=settings.short_rows,
            seed=settings.seed,
            keep_duplicates=settings.keep_duplicates,
            shuffle=settings.shuffle_documents,
            compress=settings.compress,
            salt=int.from_bytes(salt[:4], "little"),
        )

    def _finished_shard(self, job):
        """The result of a shard that an earlier run made, or None if it is another's or not whole."""
        result = storage.read_json(job.result)
        size = storage.size(storage.join(self._output, job.name))
        return result if result["shard"]["salt"] == job.salt and result["shard"]["bytes"] == size else None


def _dropped(information):
    """How many documents the filters dropped, a dictionary from reason to number."""
    total = collections.Counter()
    for each in information:
        total.update(each["dropped"])
    return dict(sorted(total.items()))


def _summary(settings, information, results, train_shards, sequence_length):
    """Numbers for people."""
    held_out = results[train_shards:]
    rows = sum(each["rows"] for each in results)
    tokens = sum(each["tokens"] for each in information)
    places = max(1, rows * sequence_length)
    summary = {
        "documents": sum(each["documents"] for each in results),
        "duplicate_documents": sum(each["duplicates"] for each in results),
        "text_bytes": sum(each["text_bytes"] for each in information),
        "tokens": sum(each["tokens"] for each in results),
        "rows": rows,
        "padding_share": round(1 - sum(each["row_tokens"] for each in results) / places, 6),
        "unknown_token_share": round(sum(each["unknown_tokens"] for each in information) / max(1, tokens), 6),
        "held_out_documents": sum(each["documents"] for each in held_out),
        "held_out_rows": sum(each["rows"] for each in held_out),
    }
    if settings.filters().active:
        summary["filtered_documents"] = _dropped(information)
    if settings.near_duplicates is not None:
        summary["near_duplicate_documents"] = sum(each["near_duplicates"] for each in results)
    return summary
