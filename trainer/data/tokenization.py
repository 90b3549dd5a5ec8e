"""Tokenization: text to WordPiece ids as BERT does it, with tensorflow-text's fast WordPiece operation.

`tensorflow_text.FastBertTokenizer` is fast but not BERT: it folds case by NFKC ("″" becomes two primes, "ß" becomes
"ss"), puts a space where BERT drops a control character (the soft hyphen), and counts bytes, not characters, in the
longest word. So the text is normalised here first, character by character as the reference does it, and only the
splitting into pieces is left to the operation. ASCII text takes a short cut.

The reference is Hugging Face `tokenizers` (`BertNormalizer`, `BertPreTokenizer`, `WordPiece`). Google's tokenization.py
differs from it in rare cases: it keeps private-use characters, takes words up to 200 characters, lower-cases a final Σ
to ς. In both, `[MASK]` in a text is punctuation and letters, not the special token.
"""

import re
import unicodedata

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.core.pybinds import pywrap_fast_wordpiece_tokenizer_model_builder as model_builder

from trainer.data.vocabulary import MASK, SUFFIX_MARK, UNKNOWN

LONGEST_WORD = 100  # characters; longer words become one [UNK]
_UTF8_BYTES = 4  # of one character, at most
_ASCII_PUNCTUATION = r"!-/:-@\[-`{-~"
_WORD = re.compile(rf"[^ \n{_ASCII_PUNCTUATION}]+|[{_ASCII_PUNCTUATION}]")
_LONG_WORD = re.compile(rf"[^ \n{_ASCII_PUNCTUATION}]{{{LONGEST_WORD + 1},}}")
# A private-use character: normalisation drops it from texts, no vocabulary holds it, and so it makes a word unknown.
_NEVER_A_PIECE = "\ue000"
# CJK characters that Google's tokenizer sets apart, and with it the operation, but the reference does not by a slip.
_UNSEPARATED_CJK = range(0x2B820, 0x2B920)
_CJK = (
    range(0x4E00, 0xA000),
    range(0x3400, 0x4DC0),
    range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2B740),
    range(0x2B920, 0x2CEB0),
    range(0xF900, 0xFB00),
    range(0x2F800, 0x2FA20),
)


def is_cjk(code_point):
    """Returns whether BERT takes a character for a word of its own (Chinese characters; not Hangul, not Kana)."""
    return any(code_point in block for block in _CJK)


class _Normalisation(dict):
    """Code point to its normalised text, for `str.translate`; filled as characters are met."""

    def __init__(self, lower_case):
        super().__init__()
        self._lower_case = lower_case

    def __missing__(self, code_point):
        text = self[code_point] = self._normalised(code_point)
        return text

    def _normalised(self, code_point):
        character = chr(code_point)
        if character == "\n":  # separates the lines of a batch
            return character
        category = unicodedata.category(character)
        if character in "\t\r" or category in ("Zs", "Zl", "Zp"):
            return " "
        if code_point == 0xFFFD or category in ("Cc", "Cf", "Cs", "Co"):
            return ""
        if code_point in _UNSEPARATED_CJK:
            return _NEVER_A_PIECE
        text = character
        if self._lower_case:
            decomposed = unicodedata.normalize("NFD", character)
            text = "".join(part.lower() for part in decomposed if unicodedata.category(part) != "Mn")
        if is_cjk(code_point):
            return f" {text} "
        # ASCII punctuation is left to the operation, so that ASCII characters stay one character: much faster.
        return "".join(
            f" {part} " if part > "\x7f" and unicodedata.category(part).startswith("P") else part for part in text
        )


class Normaliser:
    """BERT's text normalisation.

    Args:
        lower_case: whether to lower-case and to strip accents.
    """

    def __init__(self, lower_case):
        self._table = _Normalisation(lower_case)

    def __call__(self, text):
        """Returns normalised text; line ends stay where they are.

        After it, words are runs of characters that are neither spaces, line ends nor ASCII punctuation.
        """
        return text.translate(self._table)

    def words(self, text):
        """Returns the list of words and punctuation marks of a text, as they are split into pieces."""
        return _WORD.findall(self(text))


class Tokenizer:
    """Text to ids.

    Args:
        vocabulary: `Vocabulary`.
        lower_case: whether the vocabulary is of lower-cased text without accents.
        longest_word: words of more characters become one unknown token (100 as Hugging Face, 200 as Google).
    """

    separators_in_pairs = 1  # `[SEP]`s between the texts of a pair

    def __init__(self, vocabulary, lower_case, longest_word=LONGEST_WORD):
        self.vocabulary = vocabulary
        self.normaliser = Normaliser(lower_case)
        self._long_word = re.compile(_LONG_WORD.pattern.replace(str(LONGEST_WORD + 1), str(longest_word + 1)))
        self._ascii = _wordpiece_operation(vocabulary, longest_word)
        # The operation's limit is in bytes, which is too few where characters take several: the limit is kept here.
        self._unicode = None
        self._longest_word = longest_word

    def tokenize(self, lines):
        """Splits lines into pieces.

        Args:
            lines: list of strings without line ends.

        Returns:
            ids: `[tokens]` int32, of all lines one after the other.
            lengths: `[lines]` int64: number of tokens of each line.
        """
        if not lines:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        lines = [line.replace("\n", " ") if "\n" in line else line for line in lines]
        joined = "\n".join(lines)
        if joined.isascii():
            return self._run(self._ascii, self.normaliser(joined).split("\n"))
        ascii_places = np.array([line.isascii() for line in lines])
        pieces = np.empty(len(lines), object)
        lengths = np.zeros(len(lines), np.int64)
        for plain in (True, False):
            places = np.flatnonzero(ascii_places == plain)
            if not len(places):
                continue
            normalised = self.normaliser("\n".join([lines[place] for place in places]))
            if plain:
                operation = self._ascii
            else:
                normalised = self._long_word.sub(_NEVER_A_PIECE, normalised)
                if self._unicode is None:
                    self._unicode = _wordpiece_operation(self.vocabulary, self._longest_word * _UTF8_BYTES)
                operation = self._unicode
            ids, counts = self._run(operation, normalised.split("\n"))
            lengths[places] = counts
            pieces[places] = _split(ids, counts)
        return np.concatenate(pieces), lengths

    def ids(self, text):
        """Returns the ids of one text as a list."""
        return self.tokenize([text])[0].tolist()

    def ids_with_masks(self, text):
        """Returns the ids of a text in which `[MASK]` stands for the special token, as a list."""
        result = []
        for number, part in enumerate(text.split(MASK)):
            result += [self.vocabulary.mask_id] if number else []
            result += self.ids(part)
        return result

    @staticmethod
    def _run(operation, lines):
        with tf.device("/cpu:0"):
            pieces = operation.tokenize(tf.constant(lines, tf.string))
        return pieces.flat_values.numpy(), pieces.row_lengths().numpy()


def _split(values, lengths):
    """An object array of the parts of an array."""
    parts = np.empty(len(lengths), object)
    ends = np.cumsum(lengths)
    for place, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        parts[place] = values[end - length : end]
    return parts


def _wordpiece_operation(vocabulary, longest_word_bytes):
    """tensorflow-text's WordPiece operation, which also splits at white space, punctuation and CJK characters."""
    # The operation cannot hold empty pieces or NULs; no text can reach such pieces anyway, so others take their places.
    pieces = [
        f"{_NEVER_A_PIECE}{number}" if not piece or "\0" in piece else piece
        for number, piece in enumerate(vocabulary.pieces)
    ]
    model = model_builder.build_fast_wordpiece_model(pieces, longest_word_bytes, SUFFIX_MARK, UNKNOWN, False, False)
    # Given as a tensor: the constructor would turn megabytes of bytes into a list of Python integers.
    with tf.device("/cpu:0"):
        model = tf.constant(np.frombuffer(model, np.uint8))
    return tf_text.FastWordpieceTokenizer(model_buffer=model, token_out_type=tf.int32)
