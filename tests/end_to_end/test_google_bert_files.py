"""A run on TFRecords of Google BERT's create_pretraining_data.py, which many people have already."""

import numpy as np
import pytest
import tensorflow as tf
import trainer_process

from trainer.data.tokenization import Tokenizer
from trainer.data.vocabulary import load_vocabulary

LENGTH, PREDICTIONS = 16, 3


def pair_example(rng, vocabulary, first, second, is_random):
    """Returns a pair of sentences as a `tf.train.Example` with the features of create_pretraining_data.py."""
    first, second = list(first)[:6], list(second)[:7]
    tokens = [vocabulary.classification_id, *first, vocabulary.separator_id, *second, vocabulary.separator_id]
    maskable = [1 + place for place in range(len(first))] + [2 + len(first) + place for place in range(len(second))]
    positions = sorted(rng.choice(maskable, 2, replace=False).tolist())
    labels = [tokens[place] for place in positions]
    for place in positions:
        tokens[place] = vocabulary.mask_id

    def padded(values, length):
        return [int(value) for value in values] + [0] * (length - len(values))

    columns = {
        "input_ids": padded(tokens, LENGTH),
        "input_mask": padded([1] * len(tokens), LENGTH),
        "segment_ids": padded([0] * (2 + len(first)) + [1] * (1 + len(second)), LENGTH),
        "masked_lm_positions": padded(positions, PREDICTIONS),
        "masked_lm_ids": padded(labels, PREDICTIONS),
        "next_sentence_labels": [int(is_random)],
    }
    features = {name: tf.train.Feature(int64_list=tf.train.Int64List(value=each)) for name, each in columns.items()}
    weights = tf.train.FloatList(value=[1.0] * len(labels) + [0.0] * (PREDICTIONS - len(labels)))
    features["masked_lm_weights"] = tf.train.Feature(float_list=weights)
    return tf.train.Example(features=tf.train.Features(feature=features))


@pytest.fixture(scope="module")
def google_bert_files(small_corpus, tmp_path_factory):
    """The folder of two training files and a held-out one, made from the sentences of the small corpus."""
    folder, rng = tmp_path_factory.mktemp("google_bert"), np.random.default_rng(5)
    vocabulary = load_vocabulary(str(small_corpus / "vocab.txt"))
    text = (small_corpus.parent / "corpus.txt").read_text()
    ids, lengths = Tokenizer(vocabulary, lower_case=True).tokenize([line for line in text.splitlines() if line])
    sentences = np.split(ids, np.cumsum(lengths)[:-1])
    for name, begin, end in (("train-0", 0, 150), ("train-1", 150, 330), ("test", 330, 370)):
        with tf.io.TFRecordWriter(str(folder / f"{name}.tfrecord")) as writer:
            for place in range(begin, end):
                is_random = bool(rng.random() < 0.5)
                second = sentences[rng.integers(len(sentences))] if is_random else sentences[place + 1]
                writer.write(pair_example(rng, vocabulary, sentences[place], second, is_random).SerializeToString())
    return folder


@pytest.mark.slow  # three starts of the trainer
def test_files_of_google_bert_are_trained_on_with_their_masks(google_bert_files, small_corpus, tiny_gin, tmp_path):
    changes = (
        f"data='{google_bert_files}/train-*.tfrecord'",
        f"pretraining_data.held_out='{google_bert_files}/test.tfrecord'",
        f"pretraining_data.vocabulary='{small_corpus}/vocab.txt'",
    )
    finished = trainer_process.train(tiny_gin, tmp_path / "run", *changes)
    assert "330 rows" in finished.output
    losses, evaluated = trainer_process.losses(tmp_path / "run"), trainer_process.metrics(tmp_path / "run", "eval")
    assert len(losses) == 20
    assert evaluated[20]["masked_language_model_loss"] < evaluated[10]["masked_language_model_loss"]
    assert 0 <= evaluated[20]["sentence_pair_accuracy"] <= 1

    # The masks are those of the files: drawn at reading, they would depend on the rate.
    other_rate = (*changes, "masking.rate=0.5", "steps=4", "eval_every=None")
    trainer_process.train(tiny_gin, tmp_path / "rate", *other_rate)
    assert trainer_process.losses(tmp_path / "rate")[0] == losses[0]
    remasked = trainer_process.train(tiny_gin, tmp_path / "remasked", *other_rate, "pretraining_data.remask=True")
    assert trainer_process.losses(tmp_path / "remasked")[0] != losses[0], remasked.text
