"""Rows of labelled texts: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` as token ids, cut to a length, and their labels.

Between the texts of a pair stand as many separators as the tokenizer says (RoBERTa has two).

Too long a pair is cut as Hugging Face `tokenizers` and bert4keras do it by default: the longer text first, at its end,
until both have half of the room. A row keeps its ids and two numbers; segments and what is padding follow from these in
the graph.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from trainer.errors import InputError

# Rows are as long as the longest text asks for, in steps of this: a few shapes rather than one for every length.
_LENGTH_STEP = 16


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Texts as rows of token ids.

    Attributes:
        token_ids: `[texts, length]` int32, padded with zeros.
        num_tokens: `[texts]` int32: tokens of the row.
        first_tokens: `[texts]` int32: tokens of the first segment, `[CLS]` and `[SEP]` included.
        num_truncated: how many texts, or pairs, were cut.
    """

    token_ids: np.ndarray
    num_tokens: np.ndarray
    first_tokens: np.ndarray
    num_truncated: int

    @property
    def length(self):
        """Tokens in a row, padding included."""
        return self.token_ids.shape[1]

    def columns(self, rows=slice(None)):
        """Returns `{column: array}` of some rows, for `expand_columns`; ids of small vocabularies in 16 bits."""
        ids = self.token_ids[rows]
        small = self.token_ids.max(initial=0) < 1 << 16
        return {
            "token_ids": ids.astype(np.uint16) if small else ids,
            "num_tokens": self.num_tokens[rows],
            "first_tokens": self.first_tokens[rows],
        }


def encode_texts(tokenizer, first, second=None, *, max_length):
    """Encodes texts, or pairs of texts.

    Args:
        tokenizer: `Tokenizer`, or `trainer.data.tokenizer_file.FileTokenizer`.
        first: list of texts.
        second: list of second texts, or None.
        max_length: most tokens in a row, special ones included.

    Returns:
        `EncodedTexts`; rows have the length of the longest, rounded up to a multiple of 16 but not beyond
        `max_length`.

    Raises:
        InputError: if `max_length` leaves no room for text.
    """
    between = 0 if second is None else tokenizer.separators_in_pairs
    special = 2 + between
    room = max_length - special
    if room < special - 1:
        raise InputError(
            f"max_length {max_length} leaves no room for text beside {special} special tokens: set at least "
            f"{2 * special - 1}."
        )
    vocabulary = tokenizer.vocabulary
    ids, counts = tokenizer.tokenize(first)
    if second is None:
        kept = np.minimum(counts, room)
        cut, rows = counts > room, np.arange(len(first))
        token_ids = np.zeros((len(first), _row_length(kept + special, max_length)), np.int32)
        _place(token_ids, ids, counts, kept, 1)
    else:
        second_ids, second_counts = tokenizer.tokenize(second)
        kept, second_kept = longest_first(counts, second_counts, room)
        cut, rows = counts + second_counts > room, np.arange(len(first))
        token_ids = np.zeros((len(first), _row_length(kept + second_kept + special, max_length)), np.int32)
        _place(token_ids, ids, counts, kept, 1)
        _place(token_ids, second_ids, second_counts, second_kept, kept + 1 + between)
        for place in range(2, between + 1):
            token_ids[rows, kept + place] = vocabulary.separator_id
        token_ids[rows, kept + second_kept + 1 + between] = vocabulary.separator_id
    token_ids[:, 0] = vocabulary.classification_id
    token_ids[rows, kept + 1] = vocabulary.separator_id
    num_tokens = kept + 2 if second is None else kept + second_kept + special
    return EncodedTexts(
        token_ids=token_ids,
        num_tokens=num_tokens.astype(np.int32),
        first_tokens=(kept + 2).astype(np.int32),
        num_truncated=int(cut.sum()),
    )


def longest_first(first, second, room):
    """Returns how many tokens of each text of a pair are kept, `[pairs]` each.

    The longer text is cut first. Where both are longer than half of an odd room, the originally longer one, and of equals
    the second, keeps the odd token, as in Hugging Face `tokenizers`.

    Args:
        first, second: `[pairs]` numbers of tokens.
        room: tokens that both may have together.
    """
    shorter, longer = np.minimum(first, second), np.maximum(first, second)
    shorter = np.where(first + second > room, np.minimum(shorter, room // 2), shorter)
    longer = np.minimum(longer, room - shorter)
    return np.where(first > second, longer, shorter), np.where(first > second, shorter, longer)


def _row_length(num_tokens, max_length):
    longest = int(num_tokens.max(initial=1))
    return min(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, max_length)


def _place(rows, ids, counts, kept, starts):
    """Writes the first `kept` tokens of each text into its row, from column `starts` on.

    Args:
        rows: `[texts, length]`, is changed.
        ids: tokens of all texts, one after the other.
        counts, kept: `[texts]` tokens of each text, and how many of them are written.
        starts: `[texts]`, or one number for all.
    """
    number = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    inside = place < kept[number]
    number, place = number[inside], place[inside]
    rows[number, place + np.broadcast_to(starts, len(counts))[number]] = ids[inside]


def expand_columns(columns):
    """Makes the columns of a batch from those of stored rows, in TensorFlow operations.

    Args:
        columns: `{column: tensor}`: `token_ids` `[rows, length]`, `num_tokens` and `first_tokens` `[rows]`, others.

    Returns:
        `{column: tensor}`: `token_ids`, `segment_ids`, `document_ids`: int32 `[rows, length]`, and the others; short
        integers as int32, which every device has.
    """
    columns = {
        name: tf.cast(column, tf.int32) if tf.as_dtype(column.dtype) in (tf.uint8, tf.uint16) else column
        for name, column in columns.items()
    }
    num_tokens, first_tokens = (columns.pop(name)[:, None] for name in ("num_tokens", "first_tokens"))
    places = tf.range(columns["token_ids"].shape[1])[None]
    inside = places < num_tokens
    return columns | {
        "segment_ids": tf.cast(tf.logical_and(inside, places >= first_tokens), tf.int32),
        "document_ids": tf.cast(inside, tf.int32),
    }
