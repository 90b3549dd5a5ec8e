"""Whole runs in a bucket, through the command line: the same numbers as on a disk, whatever the bucket does."""

import os
import signal

import pytest
import trainer_process
from small_corpora import TINY_GIN

pytestmark = pytest.mark.slow

STEPS = 40
PARAMETERS = (f"steps={STEPS}", "eval_every=20", "checkpoint_every=10", "run.keep_checkpoints=2")
ROWS = "*/prepared/*.tfrecord*"


class Bucket:
    """A bucket that runs live in.

    Args:
        emulator: of the bucket.
        path: `gs://name`.
        scratch: a local folder.
        cache: folder of the compiled programs that all runs share.
    """

    def __init__(self, emulator, path, scratch, cache):
        self.emulator, self.path, self._scratch = emulator, path, scratch
        self.variables = emulator.environment | {"XDG_CACHE_HOME": str(cache)}
        self.gin = scratch / "run.gin"
        self.gin.write_text(TINY_GIN.format(data=f"{path}/prepared"))

    def run_directory(self, name="run"):
        """Copies a run directory to the disk; returns where it lies."""
        folder = self._scratch / name
        for there in self.emulator.list(self.path, f"{name}/"):
            local = self._scratch / there
            local.parent.mkdir(parents=True, exist_ok=True)
            if not there.endswith("/"):
                local.write_bytes(self.emulator.get(f"{self.path}/{there}"))
        return folder

    def train(self, *parameters, code=0, name="run"):
        """Trains in a process of its own to the end, which must be with that exit code."""
        run_dir = f"{self.path}/{name}"
        return trainer_process.train(self.gin, run_dir, *PARAMETERS, *parameters, code=code, **self.variables)

    def train_until(self, has_come, what):
        """Trains until a condition holds, and kills the process."""
        arguments = trainer_process.trainer_arguments(self.gin, f"{self.path}/run", *PARAMETERS)
        with trainer_process.Process(*arguments, **self.variables) as process:
            process.wait_until(has_come, what)
            process.send(signal.SIGKILL)
            assert process.finish().code == -signal.SIGKILL

    def committed(self):
        """The names of the markers of committed checkpoints."""
        return [name for name in self.emulator.list(self.path, "run/checkpoints/") if name.endswith("/COMMITTED")]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Compiled programs of the runs here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def local_run(tiny_gin, cache, tmp_path_factory):
    """The same run on a disk."""
    folder = tmp_path_factory.mktemp("local") / "run"
    trainer_process.train(tiny_gin, folder, *PARAMETERS, XDG_CACHE_HOME=str(cache))
    return folder


@pytest.fixture
def there(emulator, bucket, small_corpus, cache, tmp_path):
    """A `Bucket` that holds the prepared small corpus."""
    for name in os.listdir(small_corpus):
        if os.path.isfile(small_corpus / name):
            emulator.put(f"{bucket}/prepared/{name}", (small_corpus / name).read_bytes())
    return Bucket(emulator, bucket, tmp_path, cache)


def assert_same_run(ours, expected):
    """Checks that two runs have the same losses, evaluations and bits."""
    for kind in ("train", "eval"):
        assert trainer_process.metrics(ours, kind) == trainer_process.metrics(expected, kind)
    assert len(trainer_process.metrics(ours)) == STEPS
    trainer_process.assert_same_bits(
        trainer_process.checkpoint_values(ours, STEPS), trainer_process.checkpoint_values(expected, STEPS)
    )


def test_prepare_train_kill_resume_evaluate_export(emulator, bucket, small_corpus, local_run, cache, tmp_path):
    emulator.put(f"{bucket}/corpus/corpus.txt", (small_corpus.parent / "corpus.txt").read_bytes())
    there = Bucket(emulator, bucket, tmp_path, cache)
    prepared = trainer_process.run_python(
        *("-m", "tools.prepare_data", "--input", f"{bucket}/corpus/*.txt", "--output", f"{bucket}/prepared"),
        *("--vocab_size", "200", "--sequence_length", "16", "--held_out", "0.06", "--num_shards", "3"),
        **there.variables,
    )
    assert prepared.code == 0, prepared.text
    for name in os.listdir(small_corpus):
        if "tfrecord" in name:
            assert emulator.get(f"{bucket}/prepared/{name}") == (small_corpus / name).read_bytes()

    there.train_until(lambda: there.committed(), "a checkpoint")
    finished = there.train()
    assert f"of {STEPS} from" in finished.output
    assert_same_run(there.run_directory(), local_run)

    evaluated = trainer_process.run_python(
        *trainer_process.trainer_arguments([], f"{bucket}/run", others=("--mode", "evaluate")), **there.variables
    )
    loss = trainer_process.metrics(local_run, "eval")[STEPS]["loss"]
    assert evaluated.code == 0 and f"loss {loss:.6g}" in evaluated.output
    for kind in ("saved_model", "hugging_face", "checkpoint"):
        others = ("--mode", "export", "--format", kind)
        exported = trainer_process.run_python(
            *trainer_process.trainer_arguments([], f"{bucket}/run", others=others), **there.variables
        )
        assert exported.code == 0, exported.text
    names = emulator.list(bucket, "run/export/")
    for name in ("saved_model.pb", "model.safetensors", "COMMITTED"):
        assert any(each.endswith(f"/{name}") for each in names), name


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("status", {"status": 429}),
        ("status", {"status": 500}),
        ("status", {"status": 503}),
        ("reset", {}),
        ("reset_in_body", {}),
        ("truncated", {}),
        ("short", {}),
        ("corrupted", {}),
        ("slow_first_byte", {"seconds": 2.0}),
        ("stall", {"seconds": 2.0}),
    ],
)
def test_passing_faults_of_reads_change_nothing(there, local_run, kind, options):
    fault = there.emulator.faults.add(f"read {ROWS}", kind, times=2, after=3, **options)
    there.train()
    assert there.emulator.faults.hits(fault) == 2
    assert_same_run(there.run_directory(), local_run)


@pytest.mark.parametrize("kind", ["status", "reset", "lost_answer", "slow_first_byte"])
def test_passing_faults_of_writes_change_nothing(there, local_run, kind):
    fault = there.emulator.faults.add("write */checkpoints/*", kind, times=3, after=2, seconds=2.0)
    there.train()
    assert there.emulator.faults.hits(fault) == 3
    assert_same_run(there.run_directory(), local_run)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("status", {"status": 403}, "cannot be read"),
        ("expired_token", {}, "cannot be read"),
        ("status", {"status": 503}, "cannot be read"),
        ("corrupted", {}, "whole"),
        ("short", {}, "whole"),
    ],
)
def test_lasting_faults_of_reads_end_with_74_and_a_run_that_resumes(there, local_run, kind, options, message):
    there.emulator.faults.add(f"read {ROWS}", kind, times=None, after=6, **options)
    finished = there.train(code=74)
    assert message in finished.errors and "Traceback" not in finished.text, finished.text
    there.emulator.faults.clear()
    there.train()
    assert_same_run(there.run_directory(), local_run)


def test_a_bucket_that_turns_read_only_during_a_save_ends_with_74_and_a_run_that_resumes(there, local_run):
    there.emulator.faults.add("write|delete */checkpoints/*", "status", status=403, times=None, after=3)
    finished = there.train(code=74)
    assert "permission is denied" in finished.text and "Traceback" not in finished.text, finished.text
    there.emulator.faults.clear()
    there.train()
    assert_same_run(there.run_directory(), local_run)


def test_a_kill_in_the_middle_of_a_save_leaves_no_half_checkpoint(there, local_run):
    emulator = there.emulator
    emulator.faults.add("write */step_00000020/COMMITTED", "slow_first_byte", seconds=120.0, times=1)
    emulator.faults.add("write */step_00000020/manifest.json", "slow_first_byte", seconds=120.0, times=1)
    saving = "run/checkpoints/step_00000020/manifest.json"
    there.train_until(lambda: saving in emulator.list(there.path, saving), "the save of step 20")
    emulator.faults.clear()
    assert len(there.committed()) == 1
    there.train()
    assert_same_run(there.run_directory(), local_run)


def test_a_second_job_in_the_same_run_directory_is_refused(there):
    long = ("steps=1000000", "eval_every=None", "checkpoint_every=1000000")
    arguments = trainer_process.trainer_arguments(there.gin, f"{there.path}/run", *long)
    with trainer_process.Process(*arguments, **there.variables) as first:
        first.wait_until(lambda: there.emulator.list(there.path, "run/run.lock"), "the lock")
        second = there.train(code=2)
        assert "is in use" in second.errors
        first.send(signal.SIGKILL)
        first.finish()
    there.train()  # of the dead one on this machine nobody needs to wait


@pytest.mark.parametrize(
    ("variables", "path", "message"),
    [
        ({}, "gs://no-bucket-of-this-name/run", "there is no bucket"),
        ({"GOOGLE_AUTH_TOKEN_FOR_TESTING": "", "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere.json"}, None, "gcloud auth"),
    ],
)
def test_what_is_wrong_from_the_start_is_said_before_a_device_is_started(there, variables, path, message):
    run_dir = path or f"{there.path}/run"
    finished = trainer_process.train(there.gin, run_dir, code=74, **there.variables | variables)
    assert message in finished.errors and "strategy" not in finished.output
