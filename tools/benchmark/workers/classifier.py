"""The trainer's own classifier on synthetic sentences: its training step, and its predictions."""

import dataclasses

import numpy as np

from tools.benchmark.peers import protocol
from tools.benchmark.workers.train_step import choose_programs


@dataclasses.dataclass(frozen=True)
class SyntheticTexts:
    """Stands in for `trainer.data.classification_data.OpenedTexts`: texts that are the numbers of rows.

    Args:
        vocabulary_size: number of token ids.
        token_ids: `[texts, length]` int32.
        lengths: `[texts]` number of tokens.
    """

    vocabulary_size: int
    token_ids: np.ndarray
    lengths: np.ndarray
    pairs: bool = False

    @property
    def sequence_length(self):
        """Tokens in a row."""
        return self.token_ids.shape[1]

    def encode(self, first, second=None):
        """Returns the `EncodedTexts` of texts."""
        from trainer.data.labelled_rows import EncodedTexts

        numbers = np.array([int(text) for text in first])
        lengths = self.lengths[numbers].astype(np.int32)
        return EncodedTexts(self.token_ids[numbers], lengths, lengths, 0)


def prepare(settings):
    """See `protocol.serve`."""
    choose_programs()
    import keras
    import tensorflow as tf

    import trainer
    from trainer.data.labelled_rows import expand_columns
    from trainer.distribution import create_cluster, divide_batch
    from trainer.models.architecture import EncoderConfig
    from trainer.optimizers.recipes import adamw
    from trainer.optimizers.schedules import ConstantSchedule
    from trainer.tasks.classification import Classification, ClassificationConfig
    from trainer.tasks.objectives import OBJECTIVES
    from trainer.training.state import create_state
    from trainer.training.step import TrainStep

    token_ids, lengths = protocol.synthetic_sentences(settings)
    data = SyntheticTexts(settings["vocabulary_size"], token_ids, lengths)
    encoder = EncoderConfig(
        hidden_size=settings["hidden_size"],
        num_layers=settings["num_layers"],
        num_heads=settings["num_heads"],
        intermediate_size=settings["feed_forward_size"],
        dropout=settings["dropout"],
        attention_dropout=settings["dropout"],
        max_length=settings["max_length"],
        confine_attention=False,
    )
    config = ClassificationConfig(data=data, encoder=encoder)
    task = Classification(config, data, OBJECTIVES["single_label"](("0", "1")))
    cluster = create_cluster("cpu", 1)
    optimizer = adamw(learning_rate=ConstantSchedule(peak=settings["learning_rate"]))
    state = create_state(cluster.strategy, task, optimizer, seed=0, dtype="float32")
    rows = settings["rows"]
    program = TrainStep(cluster.strategy, task, optimizer, state, divide_batch(rows, 1, rows, rows), seed=0)
    texts = [str(number) for number in range(settings["sentences"])]
    examples = expand_columns(data.encode(texts[:rows]).columns())
    examples |= {
        "labels": tf.range(rows, dtype=tf.int32) % 2,
        "example_index": tf.range(rows, dtype=tf.int32),
    }
    dataset = tf.data.Dataset.from_tensors(examples).repeat().prefetch(2)
    iterator = iter(cluster.strategy.distribute_datasets_from_function(lambda _: dataset))
    loss = program.metric_names.index("loss")

    def step():
        metrics, _ = program.loop(iterator, tf.constant(1))
        return float(metrics.numpy()[0, loss])

    def predict():
        answers = task.predict(state.model, texts, 2)
        return sum(answer["probabilities"]["0"] for answer in answers)

    modes = {"step": protocol.timed_steps(step), "predict": protocol.timed_steps(predict)}
    versions = f"bert-trainer {trainer.__version__}, tensorflow {tf.__version__}, keras {keras.__version__}"
    return {"versions": versions, "modes": list(modes)}, {"run": lambda mode, **options: modes[mode](**options)}


if __name__ == "__main__":
    protocol.serve(prepare)
