"""What all end-to-end tests share: a small prepared corpus, a gin file of a tiny model, and a run of it."""

import pytest
import trainer_process
from small_corpora import prepare_small_corpus


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory):
    """The folder of a small prepared corpus."""
    return prepare_small_corpus(tmp_path_factory.mktemp("corpus"))


TINY_GIN = """
include 'pretrain.gin'
data = '{data}'
steps = 20
global_batch = 16
microbatch = 4
learning_rate = 5e-3
warmup_steps = 4
precision = 'float32'
strategy = 'cpu'
devices = 1
eval_every = 10
checkpoint_every = 5
log_every = 1
encoder.num_layers = 2
encoder.hidden_size = 16
encoder.num_heads = 2
encoder.intermediate_size = 32
encoder.max_length = 16
encoder.dropout = 0.1
encoder.attention_dropout = 0.1
pretraining_data.lanes = 8
"""


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
