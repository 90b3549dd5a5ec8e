"""The trainer's own step on synthetic rows: masking, model, gradients, clipping and update, as a run does them."""

import dataclasses
import os
import tempfile

import numpy as np

from tools.benchmark.peers import protocol
from trainer.environment import prefer_fast_programs


@dataclasses.dataclass(frozen=True)
class SyntheticData:
    """Stands in for `trainer.data.pretraining_data.OpenedData`: rows of one length over a vocabulary, without files.

    Args:
        vocabulary_size: number of token ids.
        sequence_length: tokens in a row.
        token_kinds: `TokenKinds`.
    """

    vocabulary_size: int
    sequence_length: int
    token_kinds: object
    pairs: bool = False
    predictions_per_row: int | None = None


class PreparedStep:
    """A train step with its state and an endless iterator over one batch.

    Args:
        settings: dict as `Settings.for_process` gives it; `accumulation` says how many microbatches a step has.
    """

    def __init__(self, settings):
        import tensorflow as tf

        from trainer.data.masking import MaskingConfig
        from trainer.distribution import create_cluster, divide_batch
        from trainer.models.architecture import EncoderConfig
        from trainer.models.costs import training_flops
        from trainer.optimizers.recipes import adamw
        from trainer.optimizers.schedules import ConstantSchedule
        from trainer.tasks.pretraining import Pretraining
        from trainer.training.state import create_state
        from trainer.training.step import TrainStep

        length, vocabulary_size = settings["length"], settings["vocabulary_size"]
        accumulation = settings.get("accumulation", 1)
        rows = settings["rows"] * accumulation
        config = EncoderConfig(
            hidden_size=settings["hidden_size"],
            num_layers=settings["num_layers"],
            num_heads=settings["num_heads"],
            intermediate_size=settings["feed_forward_size"],
            dropout=settings["dropout"],
            attention_dropout=settings["dropout"],
            max_length=settings["max_length"],
        )
        self.task = Pretraining(
            SyntheticData(vocabulary_size, length, _token_kinds(vocabulary_size)),
            config,
            MaskingConfig(max_predictions=settings["predictions"]),
        )
        self.cluster = create_cluster("cpu", 1)
        optimizer = adamw(learning_rate=ConstantSchedule(peak=settings["learning_rate"]))
        self.state = create_state(self.cluster.strategy, self.task, optimizer, seed=0, dtype="float32")
        batch = divide_batch(rows, 1, settings["rows"], settings["rows"])
        self.program = TrainStep(self.cluster.strategy, self.task, optimizer, self.state, batch, seed=0)
        token_ids, positions, labels = protocol.synthetic_batch({**settings, "rows": rows})
        np.put_along_axis(token_ids, positions, labels, axis=1)  # the step masks for itself
        examples = {
            "token_ids": token_ids,
            "segment_ids": np.zeros_like(token_ids),
            "document_ids": np.ones_like(token_ids),
            "example_index": np.arange(rows, dtype="int32"),
        }
        self._examples = examples
        dataset = tf.data.Dataset.from_tensors(examples).repeat().prefetch(2)
        self._iterator = iter(self.cluster.strategy.distribute_datasets_from_function(lambda _: dataset))
        self._one = tf.constant(1)
        self._loss = self.program.metric_names.index("loss")
        row = {"length": length, "predictions": settings["predictions"], "vocabulary_size": vocabulary_size}
        self.operations = rows * training_flops(config, **row)

    def examples(self):
        """Returns the examples of a step, tensors `[rows, ...]`."""
        import tensorflow as tf

        return {name: tf.constant(value) for name, value in self._examples.items()}

    def __call__(self):
        """Does one step, the way the training loop does on a CPU; returns the loss."""
        rows, _ = self.program.loop(self._iterator, self._one)
        return float(rows.numpy()[0, self._loss])


def _token_kinds(vocabulary_size):
    from trainer.data.masking import TokenKinds

    special = min(1000, vocabulary_size // 2)
    ids = np.arange(vocabulary_size)
    return TokenKinds(
        mask_id=special - 1,
        maskable=ids >= special,
        continues_word=np.zeros(vocabulary_size, bool),
        ordinary_ids=ids[special:].astype("int32"),
    )


def choose_programs():
    """Sets what a run sets before it imports TensorFlow."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    prefer_fast_programs(os.environ)


def prepare(settings):
    """See `protocol.serve`."""
    choose_programs()
    import keras
    import tensorflow as tf

    import trainer

    step = PreparedStep(settings)
    information = {
        "versions": f"bert-trainer {trainer.__version__}, tensorflow {tf.__version__}, keras {keras.__version__}",
        "operations_per_step": step.operations,
        "parameters": sum(int(np.prod(parameter.shape)) for parameter in step.state.parameters),
    }
    return information, {"run": protocol.timed_steps(step), "save": lambda **options: _save(step, **options)}


def _save(step, steps_between, saves):
    """Saves now and then while steps go on; returns how long training stood still, and how long its steps took."""
    from trainer.training.checkpoints import CheckpointManager

    run = protocol.timed_steps(step)
    quiet, writing, results = [], [], []
    with tempfile.TemporaryDirectory(prefix="bert-trainer-benchmark-") as folder:
        manager = CheckpointManager(folder, step.state.checkpoint_variables(), keep_last=1, report=lambda _: None)
        for number in range(1, saves + 1):
            quiet += run(seconds=0, at_least=steps_between)["step_seconds"]
            manager.save(number * steps_between)
            while manager.saving:
                writing += run(seconds=0)["step_seconds"]
            manager.wait()
            results.append(dataclasses.asdict(manager.last_save))
    return {"quiet_step_seconds": quiet, "writing_step_seconds": writing, "saves": results}


if __name__ == "__main__":
    protocol.serve(prepare)
