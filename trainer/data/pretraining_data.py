"""The data of a pretraining run: corpora, vocabulary and order, opened and checked before training."""

import dataclasses
import functools
import time

from trainer import storage
from trainer.data.corpora import Corpus, check_corpora, stored_rows_of
from trainer.data.evaluation_rows import evaluation_dataset
from trainer.data.google_bert import GoogleBertCorpus
from trainer.data.input_advice import input_advice
from trainer.data.lane_order import plan_lanes
from trainer.data.lanes import parallel_reads, training_dataset
from trainer.data.manifests import MANIFEST_NAME
from trainer.data.masking import TokenKinds
from trainer.data.preparation import PreparationSettings, prepare
from trainer.data.preparation_display import ProgressDisplay
from trainer.data.shard_cache import ShardCache
from trainer.data.tokenization import Tokenizer
from trainer.data.vocabulary import load_vocabulary
from trainer.errors import InputError

PYTHON_DOCS = "python_docs"
_WAIT_FOR_CHIEF_SECONDS = 3600
_POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingData:
    """Where the rows come from and in which order they are read.

    Args:
        source: a folder made by `tools.prepare_data`; a list of folders or of (folder, weight); TFRecord files made by
            Google BERT's `create_pretraining_data.py` (a glob); or `python_docs`, the English of the Python
            documentation on this machine, which is prepared in the run directory.
        lanes: number of lanes, part of the order; a multiple of every number of hosts the run will ever have.
        block_rows: rows that are read and shuffled together, part of the order; `auto` goes by the size of the data.
        num_parallel_reads: lanes that are read at the same time; `auto` leaves it to tf.data.
        services: addresses (`grpc://host:port`) of machines that read and decode in place of the hosts of the run, each
            running `python -m tools.data_service`; for all hosts the same.
        check: whether all shards are read and compared with the manifest before training; `auto` does so below 1 GiB.
        cache_dir: folder on a disk of this machine in which shards from `gs://` are kept, so that they are read from the
            bucket once; None for no such.
        cache_gigabytes: how large it may grow; data sets that were used longest ago make room.
        vocabulary: vocabulary file, only for Google BERT's TFRecords, which do not bring theirs.
        lower_case: for Google BERT's TFRecords: whether they were made with `--do_lower_case` (texts to fill masks in are
            treated alike).
        remask: for Google BERT's TFRecords: mask anew at every step instead of using the masks in the files.
        held_out: for Google BERT's TFRecords: a glob of the files to evaluate on.
        python_docs_packages: whose docstrings make up the embedded corpus, `stdlib` being the standard library.
        python_docs_length: tokens in a row of the embedded corpus.
        python_docs_vocabulary: pieces of the vocabulary learnt from the embedded corpus.
    """

    source: object
    lanes: int = 64
    block_rows: object = "auto"
    num_parallel_reads: object = "auto"
    services: tuple = ()
    check: object = "auto"
    cache_dir: str | None = None
    cache_gigabytes: float = 100.0
    vocabulary: str | None = None
    lower_case: bool = True
    remask: bool = False
    held_out: str | None = None
    python_docs_packages: tuple = ("stdlib", "keras", "numpy")
    python_docs_length: int = 128
    python_docs_vocabulary: int = 8192

    def _entries(self):
        """Returns (path, weight) of each source."""
        entries = [self.source] if isinstance(self.source, str) else list(self.source)
        return [(entry, 1.0) if isinstance(entry, str) else tuple(entry) for entry in entries]

    @property
    def paths(self):
        """What is read: folders and patterns."""
        sources = [] if self.source == PYTHON_DOCS else [str(path) for path, _ in self._entries()]
        return (*sources, *(str(path) for path in (self.vocabulary, self.held_out) if path is not None))

    @property
    def evaluation_paths(self):
        """What is read to evaluate: prepared data holds both in one place."""
        return self.paths

    def open(self, run_directory, *, is_chief=True, report=print):
        """Finds, prepares (the embedded corpus) and checks the data.

        Args:
            run_directory: `RunDirectory`; the embedded corpus is prepared in it.
            is_chief: whether this process prepares; others wait for it.
            report: callable that shows one line to a person.

        Returns:
            `OpenedData`.

        Raises:
            InputError: if data is missing, damaged, or does not fit together.
        """
        if self.source == PYTHON_DOCS:
            folder = self._python_docs(run_directory, is_chief, report)
            return self._opened([Corpus(folder)], report)
        entries = self._entries()
        if all(storage.exists(storage.join(path, MANIFEST_NAME)) for path, _ in entries):
            return self._opened([Corpus(path, weight) for path, weight in entries], report)
        if self.vocabulary is not None:
            return self._google_bert(entries, report)
        for path, _ in entries:  # says which one is missing, and what to do
            _ = Corpus(path).manifest
        raise AssertionError("unreachable: one of the manifests is missing")

    def _opened(self, corpora, report):
        own = load_vocabulary(self.vocabulary).sha256 if self.vocabulary is not None else None
        check_corpora(corpora, vocabulary_sha256=own, checksums=self.check)
        corpora, cache = self._cached(corpora, report)
        manifest = corpora[0].manifest
        vocabulary = load_vocabulary(storage.join(corpora[0].folder, manifest.vocabulary))
        return OpenedData(
            settings=self,
            corpora=tuple(corpora),
            held_out=tuple(corpus for corpus in corpora if corpus.manifest.rows("held_out")),
            sequence_length=manifest.sequence_length,
            pieces=vocabulary,
            lower_case=manifest.lower_case,
            pairs=manifest.packing.startswith("sentence_pair"),
            fingerprints=_fingerprints(corpora, [corpus.manifest.fingerprint for corpus in corpora]),
            cache=cache,
        )

    def _cached(self, corpora, report):
        """Returns the corpora, those in a bucket with the folder that caches them, and the `ShardCache` or None."""
        if self.cache_dir is None or not any(storage.is_remote(corpus.folder) for corpus in corpora):
            return corpora, None
        cache = ShardCache(self.cache_dir, int(self.cache_gigabytes * 1e9), report)
        return [
            dataclasses.replace(corpus, cached_in=cache.folder_for(corpus.folder, corpus.manifest))
            if storage.is_remote(corpus.folder)
            else corpus
            for corpus in corpora
        ], cache

    def _google_bert(self, entries, report):
        vocabulary = load_vocabulary(self.vocabulary)
        report("reading or making the indexes of Google BERT's TFRecords")

        def corpus(path, weight, held_out):
            return GoogleBertCorpus(
                path, weight, held_out=held_out, vocabulary_size=len(vocabulary), remask=self.remask
            )

        corpora = tuple(
            corpus(path, weight, self.held_out if number == 0 else None)
            for number, (path, weight) in enumerate(entries)
        )
        check_corpora(corpora, checksums=self.check)
        return OpenedData(
            settings=self,
            corpora=corpora,
            held_out=corpora[:1] if self.held_out else (),
            sequence_length=corpora[0].sequence_length,
            pieces=vocabulary,
            lower_case=self.lower_case,
            pairs=True,
            fingerprints=_fingerprints(corpora, [corpus.fingerprint for corpus in corpora]),
        )

    def _python_docs(self, run_directory, is_chief, report):
        folder = run_directory.data_path
        manifest = storage.join(folder, MANIFEST_NAME)
        if is_chief:
            if not storage.exists(manifest):
                report("preparing the embedded corpus: documentation of Python and the installed libraries")
                settings = PreparationSettings(
                    source=PYTHON_DOCS,
                    python_packages=tuple(self.python_docs_packages),
                    sequence_length=self.python_docs_length,
                    vocabulary_size=self.python_docs_vocabulary,
                )
                with ProgressDisplay() as progress:
                    prepare(settings, folder, progress=progress)
            return folder
        deadline = time.monotonic() + _WAIT_FOR_CHIEF_SECONDS
        while not storage.exists(manifest):
            if time.monotonic() > deadline:
                raise InputError(f"{manifest} did not appear: did the chief, which prepares the data, fail?")
            time.sleep(_POLL_SECONDS)
        return folder


def _fingerprints(corpora, contents):
    """Returns a text a corpus that changes when its content does or, among several, its weight."""
    total = sum(corpus.weight for corpus in corpora)
    if len(contents) == 1:
        return tuple(contents)
    return tuple(f"{text} x {corpus.weight / total:.9g}" for text, corpus in zip(contents, corpora, strict=True))


@dataclasses.dataclass(frozen=True)
class OpenedData:
    """Data that was found whole.

    Attributes:
        settings: the `PretrainingData`.
        corpora: corpora to train on.
        held_out: corpora to evaluate on; may be empty.
        sequence_length: tokens in a row.
        pieces: the `Vocabulary`.
        lower_case: whether text is lower-cased.
        pairs: whether rows are sentence pairs with labels.
        fingerprints: one text a corpus that changes when its content or its share does.
        cache: the `ShardCache` of corpora in a bucket, or None.
    """

    settings: PretrainingData
    corpora: tuple
    held_out: tuple
    sequence_length: int
    pieces: object
    lower_case: bool
    pairs: bool
    fingerprints: tuple
    cache: ShardCache | None = None

    @property
    def vocabulary_size(self):
        """Number of token ids."""
        return len(self.pieces)

    @property
    def predictions_per_row(self):
        """Slots for masked tokens in rows that come masked; None where the run masks them."""
        return None if self.settings.remask else getattr(self.corpora[0], "predictions_per_row", None)

    @functools.cached_property
    def token_kinds(self):
        """`TokenKinds` for masking."""
        return TokenKinds.of(self.pieces.pieces)

    @functools.cached_property
    def tokenizer(self):
        """The `Tokenizer` that made the rows."""
        return Tokenizer(self.pieces, lower_case=self.lower_case)

    @functools.cached_property
    def plan(self):
        """The `LanePlan`."""
        return plan_lanes(self.corpora, lanes=self.settings.lanes, block_rows=self.settings.block_rows)

    @functools.cached_property
    def stored_rows(self):
        """The `StoredRows` of training and of evaluation."""
        held_out = (stored_rows_of(self.held_out, "held_out"),) if self.held_out else ()
        return (self.plan.rows, *held_out)

    def training_dataset(self, **options):
        """See `trainer.data.lanes.training_dataset`; the order is that of the settings."""
        if self.cache is not None:
            self.cache.start()
        return training_dataset(
            self.plan,
            lanes=self.plan.lanes,
            num_parallel_reads=self.settings.num_parallel_reads,
            services=tuple(self.settings.services),
            **options,
        )

    def input_advice(self, processor_share, num_hosts):
        """See `trainer.data.input_advice.input_advice`."""
        reads = parallel_reads(self.plan, self.settings.num_parallel_reads)
        return input_advice(self.plan, reads, self.cache is not None, processor_share, num_hosts)

    def evaluation_dataset(self, **options):
        """See `trainer.data.evaluation_rows.evaluation_dataset`; there must be held-out rows."""
        return evaluation_dataset(self.held_out, **options)
