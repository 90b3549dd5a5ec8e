"""What all end-to-end tests share: a small prepared corpus, a gin file of a tiny model, and a run of it."""

import pytest
import trainer_process
from small_corpora import TINY_GIN, prepare_small_corpus


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory):
    """The folder of a small prepared corpus."""
    return prepare_small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tiny_gin(small_corpus, tmp_path_factory):
    """A gin file: 20 steps of a tiny model on the small corpus, on one CPU device with four microbatches."""
    path = tmp_path_factory.mktemp("gin") / "tiny.gin"
    path.write_text(TINY_GIN.format(data=small_corpus))
    return path


@pytest.fixture(scope="session")
def trained_run(tiny_gin, tmp_path_factory):
    """The run directory of a whole run of the tiny gin file; must not be changed, copy it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    finished = trainer_process.train(tiny_gin, folder)
    assert "global 16 = 1 replica x 4 accumulation x 4 microbatch" in finished.output
    assert trainer_process.committed_steps(folder) == [10, 15, 20]
    return folder
