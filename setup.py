"""The distribution `bert-trainer`: the trainer, its launchers and tools, and the gin files.

For a Cloud TPU VM, where `tensorflow-tpu` takes the place of `tensorflow` (both install the same files, and
tensorflow-text asks for the latter):

    BERT_TRAINER_ACCELERATOR=tpu pip install '.[tpu]'
    pip install --no-deps 'tensorflow-text==2.20.*'        # of the same minor version as tensorflow-tpu
"""

import os
import pathlib
import re

from setuptools import find_packages, setup

FOLDER = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (FOLDER / "trainer" / "__init__.py").read_text(encoding="utf-8"))[1]
README = FOLDER / "README.md"

TENSORFLOW = ["tensorflow>=2.19,<2.22", "tensorflow-text>=2.19,<2.22"]  # tensorflow-text pins its own minor version
REQUIREMENTS = [
    "keras>=3.10",
    "numpy",
    "absl-py",
    "gin-config>=0.5",
    "google-cloud-storage",
    "google-crc32c",
    "rich",
    "safetensors",
    "tensorboard",
]
EXTRAS = {
    "test": [
        "pytest>=8",
        "pytest-timeout",
        "pytest-xdist",
        "ruff>=0.12",
        "tokenizers",
        "psutil",
        "trustme>=1.2",
        "gcp-storage-emulator==2026.7.19",  # tests/gcs calls its handlers
        "optax",
        "optuna>=4",
        "PyYAML>=6",
        "kubernetes-validate",
        "scikit-learn",
        # Architectures and weights are compared with its models, which needs a CPU build of torch besides: .ci/run installs
        # one. Not this list, because torch from PyPI brings CUDA and Triton, which crashes where TensorFlow is loaded.
        "transformers>=5",
    ],
    # tools.prepare_data: corpora beyond one machine, and texts of some languages alone.
    "beam": ["apache-beam>=2.70"],
    "languages": ["py3langid>=0.4"],
    # launch/sweep.sh --search.
    "sweep": ["optuna>=4"],
    "kubernetes": ["PyYAML>=6"],  # launch/gke.sh
    # Peers that tools/benchmark compares with and that can live beside the trainer. Model Garden and bert4keras cannot:
    # they ask for other versions of TensorFlow and Keras; docs/benchmarks.md says how to install them elsewhere.
    "bench": ["keras-hub", "transformers>=5", "torch"],
}
if os.environ.get("BERT_TRAINER_ACCELERATOR") == "tpu":
    # There is no extra of this name otherwise: with plain TensorFlow beside it, tensorflow-tpu would break both.
    EXTRAS["tpu"] = ["tensorflow-tpu>=2.18,<2.21"]
else:
    REQUIREMENTS = TENSORFLOW + REQUIREMENTS

setup(
    name="bert-trainer",
    version=VERSION,
    description="Distributed training of BERT-family models: one Gin file, any hardware, the same run",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    packages=[*find_packages(include=["trainer*", "launch*", "tools*"]), "trainer.gin_files"],
    # The gin files lie beside the code, where people look for them; a wheel carries them inside the package.
    package_dir={"trainer.gin_files": "gin"},
    package_data={"trainer.gin_files": ["*.gin", "*/*.gin"], "launch": ["*.sh"], "launch.sweep": ["report.html"]},
    include_package_data=False,
)
