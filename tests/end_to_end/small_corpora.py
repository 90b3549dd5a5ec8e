"""A small corpus with something to learn, prepared with a vocabulary of its own, and a run on it."""

import numpy as np

from trainer.data.preparation import PreparationSettings, prepare

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

# A text with something to learn: each verb takes objects of its own kind.
_SUBJECTS = ("the child", "a sailor", "her brother", "the old teacher", "my neighbour", "every farmer")
_PREDICATES = {
    "reads": ("a long book", "the letter", "yesterday's newspaper"),
    "drinks": ("cold water", "a cup of tea", "the bitter coffee"),
    "repairs": ("the broken wheel", "an engine", "his boat"),
    "plants": ("apple trees", "a row of beans", "white flowers"),
}


def _sentence(rng):
    verb = rng.choice(list(_PREDICATES))
    return (
        f"{rng.choice(_SUBJECTS)} {verb} {rng.choice(_PREDICATES[verb])} {rng.choice(['today', 'again', 'at home'])}."
    )


def prepare_small_corpus(folder, *, sequence_length=16, packing="full_sentences"):
    """Prepares about 1,500 rows of generated English in `folder / "prepared"`; returns that path."""
    rng = np.random.default_rng(11)
    documents = ["\n".join(_sentence(rng) for _ in range(rng.integers(4, 12))) for _ in range(400)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    settings = PreparationSettings(
        inputs=(f"{folder}/corpus.txt",),
        vocabulary_size=200,
        sequence_length=sequence_length,
        packing=packing,
        held_out=0.06,
        num_shards=3,
    )
    prepare(settings, folder / "prepared", num_workers=0)
    return folder / "prepared"
