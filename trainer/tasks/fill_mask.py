"""Filling masks: what a pretrained model believes stands at each `[MASK]` of a text."""

import numpy as np
import tensorflow as tf

from trainer.data.vocabulary import MASK
from trainer.errors import InputError

_BATCH = 32
_ANSWERS = 5


def encode_texts(data, texts):
    """Turns texts with `[MASK]` in them into rows.

    Args:
        data: the `OpenedData` whose tokenizer made the training rows.
        texts: list of strings.

    Returns:
        token ids `[texts, length]` int32, and for each text the list of its mask positions.

    Raises:
        InputError: naming the text that has no mask or is too long.
    """
    vocabulary, length = data.pieces, data.sequence_length
    rows = np.zeros((len(texts), length), np.int32)
    positions = []
    for number, text in enumerate(texts):
        if MASK not in text:
            raise InputError(f"text {number + 1} has no {MASK} in it: {text!r}")
        ids = [vocabulary.classification_id, *data.tokenizer.ids_with_masks(text), vocabulary.separator_id]
        if len(ids) > length:
            raise InputError(f"text {number + 1} has {len(ids)} tokens, the model was trained on {length}: {text!r}")
        rows[number, : len(ids)] = ids
        positions.append([i for i, token in enumerate(ids) if token == vocabulary.mask_id])
    return rows, positions


def fill_masks(data, model, texts, top_k):
    """Predicts the tokens behind masks.

    Args:
        data: `OpenedData`.
        model: `PretrainingModel`.
        texts: list of strings with `[MASK]` in them.
        top_k: number of answers a mask; None for 5.

    Returns:
        list of dicts, one a text: `text`, and `masks`: a list with one list of `{"token", "probability"}` a mask, the
        likeliest first.
    """
    rows, positions = encode_texts(data, texts)
    slots = max(len(found) for found in positions)
    top_k = min(top_k or _ANSWERS, data.vocabulary_size)
    where = np.zeros((len(texts), slots), np.int32)
    for number, found in enumerate(positions):
        where[number, : len(found)] = found

    @tf.function(jit_compile=True)
    def answer(token_ids, where):
        documents = tf.cast(token_ids != 0, tf.int32)
        logits, _ = model(token_ids, tf.zeros_like(token_ids), documents, where)
        return tf.math.top_k(tf.nn.softmax(logits), top_k)

    probabilities, ids = [], []
    for start in range(0, len(texts), _BATCH):
        # The last batch is filled up, so that one program serves all.
        part, part_where = rows[start : start + _BATCH], where[start : start + _BATCH]
        count = len(part)
        missing = (_BATCH if len(texts) > _BATCH else count) - count
        best = answer(np.pad(part, ((0, missing), (0, 0))), np.pad(part_where, ((0, missing), (0, 0))))
        probabilities.append(best.values.numpy()[:count])
        ids.append(best.indices.numpy()[:count])
    probabilities, ids = np.concatenate(probabilities), np.concatenate(ids)
    return [
        {
            "text": text,
            "masks": [
                [
                    {"token": data.pieces.pieces[token], "probability": float(probability)}
                    for token, probability in zip(ids[number, slot], probabilities[number, slot], strict=True)
                ]
                for slot in range(len(positions[number]))
            ],
        }
        for number, text in enumerate(texts)
    ]


def show_answers(answers, console):
    """Prints what `fill_masks` returned.

    Args:
        answers: list of dicts.
        console: `rich.console.Console`.
    """
    for answer in answers:
        console.print(answer["text"], style="bold", markup=False)
        for number, candidates in enumerate(answer["masks"]):
            label = f"  {MASK} {number + 1}  " if len(answer["masks"]) > 1 else "  "
            listed = "  ".join(f"{item['token']} {item['probability']:.3f}" for item in candidates)
            console.print(label + listed, markup=False)


def row_specifications(data):
    """Returns the input specifications of token ids and segment ids, any number of rows of the training length."""
    shape = [None, data.sequence_length]
    return [tf.TensorSpec(shape, tf.int32, name=name) for name in ("token_ids", "segment_ids")]


def encode_signature(data, model):
    """Returns the function of a SavedModel that gives hidden states.

    Args:
        data: `OpenedData`.
        model: a model with an `encoder`.
    """

    @tf.function(input_signature=row_specifications(data))
    def encode(token_ids, segment_ids):
        documents = tf.cast(model.encoder.compute_mask(token_ids), tf.int32)
        return {"hidden": tf.cast(model.encoder(token_ids, segment_ids, documents), tf.float32)}

    return encode.get_concrete_function()


def serving_signatures(data, model):
    """Returns the functions of a SavedModel, for any number of rows of the training length.

    Args:
        data: `OpenedData`.
        model: `PretrainingModel`.
    """
    positions = tf.TensorSpec([None, None], tf.int32, name="positions")

    @tf.function(input_signature=[*row_specifications(data), positions])
    def fill(token_ids, segment_ids, positions):
        documents = tf.cast(model.encoder.compute_mask(token_ids), tf.int32)
        logits, pair_logits = model(token_ids, segment_ids, documents, positions)
        answer = {"token_logits": logits[:, :, : data.vocabulary_size]}
        return answer if pair_logits is None else answer | {"pair_logits": pair_logits}

    return {"serving_default": fill.get_concrete_function(), "encode": encode_signature(data, model)}
