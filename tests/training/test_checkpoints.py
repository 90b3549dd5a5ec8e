import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import storage
from trainer.errors import InputError, StorageFailed
from trainer.training import checkpoint_content, checkpoints
from trainer.training.checkpoints import CheckpointManager

with contextlib.suppress(RuntimeError):  # devices can be configured only before TensorFlow starts them
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def make_variables():
    return {
        "weights": {"encoder/kernel": tf.Variable(tf.zeros([4, 3])), "bias": keras.Variable(np.zeros(3), name="bias")},
        "optimizer": {"encoder/kernel": {"m": tf.Variable(tf.zeros([4, 3]))}},
        "step": tf.Variable(0, dtype=tf.int64),
    }


def set_step(variables, step):
    """Sets every variable to values that only this step has."""
    for index, variable in enumerate(checkpoint_content.flatten(variables).values()):
        value = np.arange(variable.shape.num_elements()).reshape(variable.shape) + 1000.0 * step + 0.1 * index
        variable.assign(value.astype(variable.dtype.as_numpy_dtype))


def values(variables):
    return {name: variable.numpy() for name, variable in checkpoint_content.flatten(variables).items()}


def assert_holds(variables, step):
    expected = make_variables()
    set_step(expected, step)
    for name, value in values(expected).items():
        np.testing.assert_array_equal(values(variables)[name], value, err_msg=name)


class Reports(list):
    def __call__(self, message):
        self.append(message)


def make_manager(folder, variables=None, **options):
    options = {"report": Reports(), "retry_seconds": ()} | options
    return CheckpointManager(str(folder), variables or make_variables(), **options)


def save_steps(folder, *steps, **options):
    variables = make_variables()
    manager = make_manager(folder, variables, **options)
    for step in steps:
        set_step(variables, step)
        manager.save(step)
    manager.wait()
    return manager


@pytest.mark.parametrize("asynchronous", [True, False])
def test_restore_latest_brings_back_every_bit(tmp_path, asynchronous):
    save_steps(tmp_path, 10, 20, asynchronous=asynchronous)
    variables = make_variables()
    assert make_manager(tmp_path, variables).restore_latest() == 20
    assert_holds(variables, 20)


def test_an_empty_folder_restores_nothing(tmp_path):
    assert make_manager(tmp_path / "checkpoints").restore_latest() is None


def test_values_are_those_of_the_moment_of_save_not_of_the_write(tmp_path, monkeypatch):
    variables = make_variables()
    manager = make_manager(tmp_path, variables)
    may_write = threading.Event()
    original = checkpoint_content.write
    monkeypatch.setattr(checkpoint_content, "write", lambda *args: (may_write.wait(60), original(*args)))
    set_step(variables, 1)
    manager.save(1)
    for variable in checkpoint_content.flatten(variables).values():
        variable.assign_add(tf.ones(variable.shape, variable.dtype))  # training goes on in place
    assert manager.saving
    may_write.set()
    manager.wait()
    restored = make_variables()
    make_manager(tmp_path, restored).restore(1)
    assert_holds(restored, 1)


def test_a_newer_save_waits_for_the_one_before(tmp_path, monkeypatch):
    variables = make_variables()
    manager = make_manager(tmp_path, variables)
    under_way, most = [], []
    original = checkpoint_content.write

    def write(prefix, tensors):
        under_way.append(prefix)
        most.append(len(under_way))
        original(prefix, tensors)
        under_way.remove(prefix)

    monkeypatch.setattr(checkpoint_content, "write", write)
    for step in range(1, 8):
        manager.save(step)
    manager.wait()
    assert most == [1] * 7
    assert manager.steps() == [5, 6, 7]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "int64", "int32", "bool", "uint8"])
def test_every_type_survives(tmp_path, dtype):
    value = tf.cast([[0, 1, 1, 0, 1, 1, 0]], dtype)
    make_manager(tmp_path, {"a": tf.Variable(value)}).save(1, wait=True)
    variable = tf.Variable(tf.zeros_like(value))
    make_manager(tmp_path, {"a": variable}).restore_latest()
    assert variable.dtype == dtype
    np.testing.assert_array_equal(variable.numpy(), value.numpy())


def test_the_content_is_readable_by_tensorflow_itself(tmp_path):
    manager = save_steps(tmp_path, 7)
    reader = tf.train.load_checkpoint(manager.prefix(7))
    expected = make_variables()
    set_step(expected, 7)
    key = "weights/encoder/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    np.testing.assert_array_equal(reader.get_tensor(key), values(expected)["weights/encoder/kernel"])

    kernel, step = tf.Variable(tf.zeros([4, 3])), tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(weights=tf.train.Checkpoint(encoder=tf.train.Checkpoint(kernel=kernel)), step=step)
    checkpoint.read(manager.prefix(7)).assert_existing_objects_matched()
    np.testing.assert_array_equal(kernel.numpy(), values(expected)["weights/encoder/kernel"])


def test_the_manifest_holds_step_files_and_metadata(tmp_path):
    manager = save_steps(tmp_path, 7, metadata=lambda: {"fingerprint": "abc", "global_batch": 256})
    manifest = manager.read_manifest(7)
    assert manifest["step"] == 7
    assert manifest["metadata"] == {"fingerprint": "abc", "global_batch": 256}
    for name, file in manifest["files"].items():
        path = os.path.join(manager.path(7), name)
        assert file == {"bytes": os.path.getsize(path), "crc32c": storage.file_checksum(path)}
    assert sorted(os.listdir(manager.path(7))) == sorted([*manifest["files"], "manifest.json", "COMMITTED"])


def test_the_last_n_and_every_mth_stay(tmp_path):
    manager = save_steps(tmp_path, *range(10, 130, 10), keep_last=2, keep_every=50)
    assert manager.steps() == [50, 100, 110, 120]


def test_last_save_tells_what_it_took(tmp_path):
    info = save_steps(tmp_path, 3).last_save
    assert (info.step, info.error) == (3, None)
    assert info.bytes > 4 * (12 + 3 + 12)
    assert info.copy_seconds >= 0 and info.write_seconds > 0 and info.wait_seconds >= 0


def test_only_the_chief_writes(tmp_path):
    manager = save_steps(tmp_path, 1, is_chief=False)
    assert os.listdir(tmp_path) == [] and manager.last_save is None


# Damage.


def flip_a_byte(path):
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


FILES = ["weights.index", "weights.data-00000-of-00001", "manifest.json", "COMMITTED"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_a_byte, os.remove, lambda path: os.truncate(path, 1)])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, name, damage):
    manager = save_steps(tmp_path, 10, 20)
    damage(os.path.join(manager.path(20), name))
    variables, reports = make_variables(), Reports()
    manager = make_manager(tmp_path, variables, report=reports)
    assert manager.restore_latest() == 10
    assert_holds(variables, 10)
    assert any(name in message and manager.path(20) in message for message in reports)
    assert manager.steps() == [10]
    assert any("step_00000020" in entry and not entry.startswith("step") for entry in os.listdir(tmp_path))
    set_step(variables, 20)
    manager.save(20, wait=True)  # the way is clear
    assert manager.verify(20) is None


def test_verify_names_the_file(tmp_path):
    manager = save_steps(tmp_path, 10)
    assert manager.verify(10) is None
    flip_a_byte(os.path.join(manager.path(10), FILES[1]))
    assert FILES[1] in manager.verify(10)
    with pytest.raises(StorageFailed, match=FILES[1]):
        manager.restore(10)


def test_no_good_checkpoint_is_an_error_now_and_at_the_next_start(tmp_path):
    manager = save_steps(tmp_path, 10, 20)
    for step in (10, 20):
        flip_a_byte(os.path.join(manager.path(step), FILES[1]))
    for _ in range(2):
        with pytest.raises(StorageFailed, match="none of the checkpoints"):
            make_manager(tmp_path).restore_latest()


def test_another_host_changes_nothing_in_the_folder(tmp_path):
    manager = save_steps(tmp_path, 10, 20)
    flip_a_byte(os.path.join(manager.path(20), FILES[1]))
    before = sorted(os.listdir(tmp_path))
    assert make_manager(tmp_path, is_chief=False).restore_latest() == 10
    assert sorted(os.listdir(tmp_path)) == before


def test_restore_of_an_absent_step_names_those_that_exist(tmp_path):
    manager = save_steps(tmp_path, 10, 20)
    with pytest.raises(InputError, match=r"step 15.*10, 20"):
        manager.restore(15)


# Other models and topologies.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["weights"].pop("bias"), "holds the variable 'weights/bias', which the model lacks"),
        (lambda v: v["weights"].update(extra=tf.Variable(0.0)), "holds no variable 'weights/extra'"),
        (
            lambda v: v["weights"].update({"encoder/kernel": tf.Variable(tf.zeros([4, 5]))}),
            r"'weights/encoder/kernel' has shape \(4, 3\) in the checkpoint and \(4, 5\) in the model",
        ),
        (lambda v: v.update(step=tf.Variable(0, dtype=tf.int32)), "'step' is int64 in the checkpoint and int32"),
    ],
)
def test_another_model_is_refused_before_any_variable_changes(tmp_path, change, message):
    save_steps(tmp_path, 10)
    variables = make_variables()
    change(variables)
    with pytest.raises(InputError, match=message):
        make_manager(tmp_path, variables).restore_latest()
    assert all(not value.any() for value in values(variables).values())
    assert os.listdir(tmp_path) == ["step_00000010"]  # it is not damaged


@pytest.fixture
def two_replicas():
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("TensorFlow started with one logical CPU device in this process")
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def test_a_checkpoint_moves_between_topologies(tmp_path, two_replicas):
    with two_replicas.scope():
        mirrored = make_variables()
    set_step(mirrored, 5)
    make_manager(tmp_path, mirrored).save(5, wait=True)
    single = make_variables()
    assert make_manager(tmp_path, single).restore_latest() == 5
    assert_holds(single, 5)
    with two_replicas.scope():
        again = make_variables()
    assert make_manager(tmp_path, again).restore_latest() == 5
    for variable in checkpoint_content.flatten(again).values():
        first, second = (value.numpy() for value in variable.values)
        np.testing.assert_array_equal(first, second)
    assert_holds(again, 5)


def test_names_that_collide_are_refused():
    with pytest.raises(ValueError, match="a/b"):
        checkpoint_content.flatten({"a/b": tf.Variable(0.0), "a": {"b": tf.Variable(0.0)}})


# Failing storage.


@contextlib.contextmanager
def no_file_larger_than(num_bytes):
    """The kernel refuses to let files grow, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_training_and_the_last_good_checkpoint(tmp_path):
    variables = {"a": tf.Variable(tf.ones([50_000]))}
    reports = Reports()
    manager = make_manager(tmp_path, variables, report=reports, retry_seconds=(0.0, 0.0))
    manager.save(1, wait=True)
    variables["a"].assign_add(tf.ones([50_000]))
    with no_file_larger_than(100_000):
        manager.save(2)
        with pytest.raises(StorageFailed, match=r"step_00000002.*last good checkpoint is of step 1"):
            manager.wait()
    assert manager.failures == 1
    assert len(reports) == 3 and "trying again" in reports[0] and "training goes on" in reports[-1]
    assert os.listdir(tmp_path) == ["step_00000001"]
    manager.save(3, wait=True)  # there is room again
    assert manager.steps() == [1, 3]


def test_a_passing_fault_is_overcome_by_trying_again(tmp_path, monkeypatch):
    faults = [OSError(28, "No space left on device"), tf.errors.UnavailableError(None, None, "503")]
    original = storage.write_json

    def write_json(path, value):
        if faults:
            raise faults.pop()
        original(path, value)

    monkeypatch.setattr(storage, "write_json", write_json)
    manager = save_steps(tmp_path, 1, retry_seconds=(0.0, 0.0))
    assert manager.failures == 0 and manager.verify(1) is None


# Death at any instant.


class Killed(BaseException):
    """The process is no more: nothing that is written afterwards counts."""


class DyingStorage:
    """Performs the first `lives` write operations; from then on nothing reaches the disk, not even cleaning up."""

    OPERATIONS = ("make_folder", "write_json", "write_text", "remove", "flush_to_disk", "rename")

    def __init__(self, monkeypatch, lives):
        self.count, self.lives = 0, lives
        for name in self.OPERATIONS:
            monkeypatch.setattr(storage, name, self.wrap(getattr(storage, name)))
        monkeypatch.setattr(checkpoint_content, "write", self.wrap(checkpoint_content.write))
        monkeypatch.setattr(os, "replace", self.wrap(os.replace))  # inside an atomic write

    def wrap(self, function):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count > self.lives:
                raise Killed
            return function(*args, **kwargs)

        return wrapped


def save_and_die(monkeypatch, folder, lives):
    """Saves step 30 with steps 10 and 20 there; returns whether it lived to the end."""
    with monkeypatch.context() as patch:
        variables = make_variables()
        manager = make_manager(folder, variables, keep_last=2, asynchronous=False)
        set_step(variables, 30)
        dying = DyingStorage(patch, lives)
        with contextlib.suppress(Killed):
            manager.save(30)
        return dying.count <= lives


def test_death_between_any_two_write_operations_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    resumed_at = []
    for lives in range(100):
        folder = tmp_path / str(lives)
        save_steps(folder, 10, 20)
        lived = save_and_die(monkeypatch, folder, lives)
        variables = make_variables()
        manager = make_manager(folder, variables)
        resumed_at.append(manager.restore_latest())
        assert_holds(variables, resumed_at[-1])
        set_step(variables, 40)
        manager.save(40, wait=True)  # and goes on
        assert manager.verify(40) is None
        if lived:
            break
    assert lived
    assert resumed_at == sorted(resumed_at) and set(resumed_at) == {20, 30}
    assert len(resumed_at) > 10


def test_death_while_removing_what_was_unfinished_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    for lives in range(4):
        folder = tmp_path / str(lives)
        save_steps(folder, 10, 20)
        save_and_die(monkeypatch, folder, 3)
        flip_a_byte(folder / "step_00000020" / FILES[1])
        with monkeypatch.context() as patch:
            manager = make_manager(folder)
            DyingStorage(patch, lives)
            with contextlib.suppress(Killed):
                manager.restore_latest()
        variables = make_variables()
        assert make_manager(folder, variables).restore_latest() == 10
        assert_holds(variables, 10)


def test_kill_9_at_random_moments_of_saves_always_resumes_from_the_last_commit(tmp_path):
    environment = os.environ | {"PYTHONPATH": ROOT, "TF_CPP_MIN_LOG_LEVEL": "3"}
    script = os.path.join(os.path.dirname(__file__), "saver_process.py")
    moments = random.Random(7)
    with subprocess.Popen(
        [sys.executable, script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as server:
        try:
            read = lambda: server.stdout.readline().decode().strip()
            assert read() == "ready"
            last_saved = 0
            for _ in range(25):
                server.stdin.write(b"\n")
                server.stdin.flush()
                pid, lines, target = None, [], moments.randint(1, 12)
                while not (pid and sum(line.startswith("saved") for line in lines) >= target):
                    line = read()
                    assert line and not line.startswith("WRONG"), (line, lines)
                    if line.startswith("pid"):
                        pid = int(line.split()[1])
                    lines.append(line)
                # A random moment inside the next saves, each of which takes a few milliseconds.
                until = time.perf_counter() + moments.random() * 0.02
                while time.perf_counter() < until:
                    pass
                os.kill(pid, signal.SIGKILL)
                while (line := read()) != "dead":
                    lines.append(line)
                resumed = next(int(line.split()[1]) for line in lines if line.startswith("resumed"))
                assert resumed >= last_saved
                last_saved = max(int(line.split()[1]) for line in lines if line.startswith("saved"))
            assert last_saved > 50
        finally:
            server.stdin.close()
            server.kill()
    step = tf.Variable(0, dtype=tf.int64)
    vector = tf.Variable(tf.zeros(3))
    manager = make_manager(tmp_path, {"weights": {"vector": vector}, "step": step})
    latest = manager.restore_latest()
    assert latest >= last_saved and step.numpy() == latest
    np.testing.assert_array_equal(vector.numpy(), [latest, latest * 0.5, -latest])


def test_a_marker_without_the_folder_name_is_ignored(tmp_path):
    save_steps(tmp_path, 10)
    for name in ("step_abc", "notes", "step_00000030.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoints.MARKER_NAME).write_text("x")
    assert make_manager(tmp_path).restore_latest() == 10
