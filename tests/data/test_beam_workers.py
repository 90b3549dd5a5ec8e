"""Apache Beam makes the same shards as the workers of one machine, and what goes wrong is said the same way."""

import dataclasses
import importlib.util
import os
import sys

import pytest
from small_texts import add_near_duplicates, corpus, files_of, small_units

from trainer.data import beam_workers
from trainer.data.beam_workers import BeamOptions, BeamWorkers
from trainer.data.preparation import PreparationSettings, prepare
from trainer.errors import InputError, StorageFailed, TrainingFailed

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="needs Apache Beam: pip install apache-beam"
)


def direct(*flags):
    """Options of the direct runner in this process, without the binary of Prism, which Beam would fetch from GitHub."""
    return BeamOptions("direct", ("--prism_location=/none", *flags))


@needs_beam
@pytest.mark.parametrize("similarity", [None, 0.8])
@pytest.mark.parametrize(
    "changes", [{}, {"packing": "sentence_pair_nsp"}, {"compress": True, "vocabulary": None, "vocabulary_size": 60}]
)
def test_the_direct_runner_and_the_local_workers_make_identical_shards(tmp_path, monkeypatch, changes, similarity):
    settings = dataclasses.replace(corpus(tmp_path / "corpus"), near_duplicates=similarity, min_words=4, **changes)
    add_near_duplicates(tmp_path / "corpus")
    small_units(monkeypatch)
    monkeypatch.setattr("trainer.data.preparation._PARTITION_TEXT_BYTES", 20_000)
    local = prepare(settings, tmp_path / "local", num_workers=0)
    manifest = prepare(settings, tmp_path / "beam", beam=direct())
    assert files_of(tmp_path / "local") == files_of(tmp_path / "beam")
    assert (manifest.summary["runner"], local.summary["workers"]) == ("direct", 0)
    assert manifest.summary["filtered_documents"]["too_few_words"] > 0
    assert sorted(os.listdir(tmp_path / "local")) == sorted(os.listdir(tmp_path / "beam"))


@needs_beam
@pytest.mark.slow  # processes that import TensorFlow
def test_worker_processes_of_the_direct_runner_make_identical_shards(tmp_path, monkeypatch):
    settings = dataclasses.replace(corpus(tmp_path / "corpus"), near_duplicates=0.8)
    add_near_duplicates(tmp_path / "corpus")
    small_units(monkeypatch)
    prepare(settings, tmp_path / "local", num_workers=0)
    flags = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    prepare(settings, tmp_path / "beam", beam=direct(*flags))
    assert files_of(tmp_path / "local") == files_of(tmp_path / "beam")


@needs_beam
def test_documentation_of_this_machine_is_the_same_corpus_under_beam(tmp_path):
    settings = PreparationSettings(source="python_docs", python_packages=("json",), vocabulary_size=300)
    prepare(settings, tmp_path / "local", num_workers=0)
    prepare(settings, tmp_path / "beam", beam=direct())
    assert files_of(tmp_path / "local") == files_of(tmp_path / "beam")


@needs_beam
@pytest.mark.parametrize(("first", "second"), [("beam", "local"), ("local", "beam")])
def test_what_one_runner_began_another_finishes(tmp_path, monkeypatch, first, second):
    settings = corpus(tmp_path / "corpus")
    small_units(monkeypatch)
    prepare(settings, tmp_path / "whole", num_workers=0)
    ways = {"beam": {"beam": direct()}, "local": {"num_workers": 0}}

    def stop(phase, done, total, unit, tokens):
        if phase == "writing shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings, tmp_path / "out", **ways[first], progress=stop)
    calls = []
    prepare(settings, tmp_path / "out", **ways[second], progress=lambda *call: calls.append(call[:3]))
    assert [call for call in calls if call[0] == "tokenizing"] == [("tokenizing", calls[0][2], calls[0][2])]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@needs_beam
def test_a_text_that_cannot_be_read_is_named_as_without_beam(tmp_path):
    settings = corpus(tmp_path / "corpus", files=1)
    (tmp_path / "corpus" / "1.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"1\.txt is not UTF-8: byte 3 "):
        prepare(settings, tmp_path / "out", beam=direct())


def fails(job):
    """A job that fails as its argument says."""
    raise {"storage": StorageFailed("no space left"), "bug": RuntimeError("a bug")}[job]


@needs_beam
@pytest.mark.parametrize(
    ("job", "error", "message"), [("storage", StorageFailed, "no space left"), ("bug", TrainingFailed, "run the same")]
)
def test_a_job_that_fails_ends_with_a_message(tmp_path, job, error, message):
    with BeamWorkers(direct(), str(tmp_path / "work")) as workers, pytest.raises(error, match=message):
        list(workers.run(fails, [job]))
    assert not (tmp_path / "work").exists()


class Cluster:
    """A runner elsewhere, which goes on while we wait; as Beam's `PipelineResult`."""

    def __init__(self, states):
        self.states, self.cancelled = list(states), False

    @property
    def state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def cancel(self):
        self.cancelled = True
        self.states = ["CANCELLED"]

    def wait_until_finish(self):
        self.states = ["DONE"]


def double(job):
    """A job."""
    return 2 * job


@needs_beam
def test_results_come_while_a_cluster_works_and_its_job_is_cancelled_when_we_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_workers, "_POLL_SECONDS", 0.0)
    cluster, folders = Cluster(["RUNNING"]), []

    def start(self, function, folder, count):
        folders.append(folder)
        beam_workers.do_job(1, folder)
        return cluster

    monkeypatch.setattr(BeamWorkers, "_start", start)
    results = BeamWorkers(direct(), str(tmp_path)).run(double, [5, 6, 7])
    assert next(results) == (1, 12)
    beam_workers.do_job(0, folders[0])
    beam_workers.do_job(1, folders[0])  # again, as runners may
    assert next(results) == (0, 10)
    results.close()
    assert cluster.cancelled


@needs_beam
def test_a_cluster_that_gives_up_leaves_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_workers, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(BeamWorkers, "_start", lambda *_: Cluster(["RUNNING", "FAILED"]))
    with pytest.raises(TrainingFailed, match=r"with 2 jobs to do \(Beam says FAILED\)"):
        list(BeamWorkers(direct(), str(tmp_path)).run(double, [1, 2]))


@needs_beam
def test_options_of_dataflow_are_completed_and_its_paths_checked():
    from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, WorkerOptions

    options = BeamOptions("dataflow", ("--project=p", "--region=us-central1", "--max_num_workers=9"))
    made = options.pipeline_options("prepare-data")
    assert made.view_as(GoogleCloudOptions).job_name == "prepare-data"
    assert made.view_as(DebugOptions).number_of_worker_harness_threads == 1
    assert made.view_as(WorkerOptions).max_num_workers == 9
    options.check_paths(["gs://bucket/corpus"])
    with pytest.raises(InputError, match=r"cannot reach corpus/\* on this machine"):
        options.check_paths(["gs://bucket/out", "corpus/*"])


@needs_beam
@pytest.mark.parametrize(
    ("runner", "flags", "message"),
    [
        ("DataflowRunner", (), "did you mean dataflow"),
        ("slurm", (), "one of local, direct, flink, spark, dataflow"),
        ("direct", ("--direct_num_worker=3",), "did you mean --direct_num_workers"),
        ("direct", ("--sequence_lenght", "64"), "did you mean --sequence_length"),
        ("direct", ("64",), "'64' belongs to no option"),
    ],
)
def test_mistakes_are_named_with_the_nearest_fix(runner, flags, message):
    with pytest.raises(InputError, match=message):
        BeamOptions(runner, flags, own_flags=("--sequence_length",))


def test_without_beam_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"pip install 'bert-trainer\[beam\]'"):
        BeamOptions("direct")
