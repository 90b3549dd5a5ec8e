"""Small pretraining tasks and runs for tests: random rows in memory, every piece real."""

import dataclasses
import types

import numpy as np
import tensorflow as tf

from trainer.data.masking import MaskingConfig, TokenKinds
from trainer.distribution import divide_batch, mirrored_on_cpu
from trainer.models.architecture import EncoderConfig
from trainer.optimizers.recipes import adamw
from trainer.optimizers.schedules import LinearSchedule
from trainer.tasks.pretraining import Pretraining
from trainer.training.state import create_state
from trainer.training.step import TrainStep

VOCABULARY_SIZE = 90
LENGTH = 16
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = [*SPECIAL, *(f"{'##' if i % 3 == 0 else ''}w{i}" for i in range(VOCABULARY_SIZE - len(SPECIAL)))]

SMALL_ENCODER = EncoderConfig(
    hidden_size=16, num_layers=1, num_heads=2, max_length=LENGTH, dropout=0.1, attention_dropout=0.1
)


def small_task(*, pairs=False, encoder=SMALL_ENCODER, masking=None):
    """Returns a `Pretraining` task whose data is described but not stored."""
    data = types.SimpleNamespace(
        pairs=pairs,
        vocabulary_size=VOCABULARY_SIZE,
        sequence_length=LENGTH,
        token_kinds=TokenKinds.of(PIECES),
        fingerprints=("test",),
        held_out=(),
    )
    return Pretraining(data, encoder, masking or MaskingConfig(max_predictions=4, rate=0.2))


def random_examples(step, global_batch, *, pairs=False):
    """Returns the examples of a step: rows of very different numbers of tokens, so of masked tokens."""
    rng = np.random.default_rng(step)
    num_tokens = rng.integers(3, LENGTH + 1, global_batch)
    inside = np.arange(LENGTH) < num_tokens[:, None]
    token_ids = rng.integers(len(SPECIAL), VOCABULARY_SIZE, (global_batch, LENGTH)) * inside
    token_ids[:, 0] = 2
    documents = np.cumsum(rng.random((global_batch, LENGTH)) < 0.1, axis=1) + 1
    return {
        "token_ids": token_ids.astype(np.int32),
        "segment_ids": (rng.integers(0, 2, (global_batch, LENGTH)) * inside).astype(np.int32),
        "document_ids": (documents * inside).astype(np.int32),
        "pair_labels": rng.integers(0, 2, global_batch).astype(np.int32)
        if pairs
        else np.full(global_batch, -1, np.int32),
        "example_index": np.arange(global_batch, dtype=np.int32),
    }


@dataclasses.dataclass
class SmallRun:
    """A training step on random examples, on some topology."""

    step: TrainStep
    state: object
    iterator: object

    def train(self, num_steps):
        """Runs steps; returns a list of dicts of metrics."""
        rows, _ = self.step.loop(self.iterator, tf.constant(num_steps))
        return [dict(zip(self.step.metric_names, row.tolist(), strict=True)) for row in rows.numpy()]

    def weights(self):
        """Returns `{name: array}` of the first replica's copy."""
        return {parameter.name: np.array(parameter.variable) for parameter in self.state.all_parameters}


def strategy_of(replicas):
    """Returns a strategy over logical CPU devices of this process."""
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("CPU:0")
    return mirrored_on_cpu([f"CPU:{i}" for i in range(replicas)])


def small_run(
    *,
    replicas=1,
    accumulation=1,
    global_batch=16,
    task=None,
    optimizer=None,
    dtype="float32",
    seed=3,
    examples=random_examples,
    compile_step=False,
    strategy=None,
    adversarial=None,
    frozen=(),
):
    """Returns a `SmallRun`; without XLA unless it is asked for, which saves most of a test's time."""
    task = task or small_task()
    if optimizer is None:
        optimizer = adamw(learning_rate=LinearSchedule(peak=1e-3, total_steps=100, warmup_steps=5))
    strategy = strategy or strategy_of(replicas)
    batch = divide_batch(global_batch, replicas, global_batch // replicas // accumulation, 1)
    state = create_state(strategy, task, optimizer, seed=seed, dtype=dtype, frozen=frozen)
    options = {"seed": seed, "compile_step": compile_step, "adversarial": adversarial}
    step = TrainStep(strategy, task, optimizer, state, batch, **options)
    rows = batch.rows_per_replica

    def elements():
        number = 0
        while True:
            whole = examples(number, global_batch)
            for replica in range(replicas):
                yield {name: value[replica * rows : (replica + 1) * rows] for name, value in whole.items()}
            number += 1

    first = examples(0, global_batch)
    signature = {name: tf.TensorSpec((rows, *value.shape[1:]), value.dtype) for name, value in first.items()}

    def dataset(_):
        made = tf.data.Dataset.from_generator(elements, output_signature=signature)
        return made.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    return SmallRun(step, state, iter(strategy.distribute_datasets_from_function(dataset)))
