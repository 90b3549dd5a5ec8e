"""What is set before TensorFlow starts."""

import os

import pytest

from trainer import environment
from trainer.environment import compilation_cache_folder, joins_loops, prefer_fast_programs, prepare_environment

JOIN = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"


@pytest.mark.parametrize(
    ("features", "flags", "expected"),
    [
        ("flags : avx2 avx512f", "", f"--xla_cpu_prefer_vector_width=512 {JOIN}"),
        ("flags : avx2 avx512f", "--xla_x=1", f"--xla_x=1 --xla_cpu_prefer_vector_width=512 {JOIN}"),
        (
            "flags : avx2 avx512f",
            "--xla_cpu_prefer_vector_width=256 --xla_backend_extra_options=a=b",
            "--xla_cpu_prefer_vector_width=256 --xla_backend_extra_options=a=b",
        ),
        ("flags : avx2 avx512f", "/home/flags.txt", "/home/flags.txt"),
        ("flags : avx2", "", JOIN),
    ],
)
def test_programs_are_as_fast_as_the_processor_allows_unless_a_person_chose(monkeypatch, features, flags, expected):
    monkeypatch.setattr(environment, "_processor_features", lambda: features)
    monkeypatch.setattr(environment, "_tensorflow_version", lambda: "2.21.0")
    variables = {"XLA_FLAGS": flags} if flags else {}
    prefer_fast_programs(variables)
    assert variables.get("XLA_FLAGS") == expected
    assert joins_loops(variables) == (JOIN in expected)


@pytest.mark.parametrize(
    ("version", "joins"), [("2.20.1", False), ("2.21.0rc1", True), ("3.0", True), ("unknown", False)]
)
def test_loops_are_joined_where_xla_knows_how(monkeypatch, version, joins):
    monkeypatch.setattr(environment, "_tensorflow_version", lambda: version)
    variables = {}
    prefer_fast_programs(variables)
    assert joins_loops(variables) == joins


def test_programs_compiled_with_other_flags_lie_elsewhere():
    assert compilation_cache_folder({"XLA_FLAGS": "--xla_x=1"}) != compilation_cache_folder({})


def test_the_newest_compiled_programs_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_CACHED_PROGRAMS", 3)
    variables = {"XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": f"--xla_cpu_prefer_vector_width=256 {JOIN}"}
    folder = compilation_cache_folder(variables)
    os.makedirs(folder)
    for age in range(6):
        path = os.path.join(folder, f"program_{age}")
        open(path, "wb").close()
        os.utime(path, (1000 - age, 1000 - age))
    prepare_environment(variables)
    assert sorted(os.listdir(folder)) == ["program_0", "program_1", "program_2"]
    assert folder in variables["TF_XLA_FLAGS"]
