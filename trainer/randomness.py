"""Counter-based randomness: every random number is a pure function of (seed, step, example, purpose, index).

Nothing here has a state. A key is a pair of 32-bit words, one pair an example; `fold_in` derives another key from a key
and a number, and `random_bits` draws as many 32-bit words from a key as are asked for. The words of a key are those of a
SplitMix generator (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): a starting point and an
odd increment of a Weyl sequence, so that the sequences of two keys never run into each other as shifted copies. The
mixing function is the 32-bit finalizer `lowbias32` found by Chris Wellons' hash prospector (bias 0.17).

Only integer operations of `keras.ops` are used, which XLA fuses into the consumer, and which give the same bits on every
device and backend.
"""

import dataclasses
import math
import zlib

import numpy as np
from keras import ops

_GOLDEN = 0x9E3779B9  # 2**32 divided by the golden ratio


def _word(number):
    """A 32-bit constant."""
    return ops.convert_to_tensor(np.uint32(number & 0xFFFFFFFF))


def mix(word):
    """Mixes 32-bit words so that every input bit flips every output bit with probability near one half.

    Args:
        word: uint32 tensor of any shape.

    Returns:
        uint32 tensor of the same shape; a bijection of the input.
    """
    word = ops.bitwise_xor(word, ops.right_shift(word, _word(16))) * _word(0x7FEB352D)
    word = ops.bitwise_xor(word, ops.right_shift(word, _word(15))) * _word(0x846CA68B)
    return ops.bitwise_xor(word, ops.right_shift(word, _word(16)))


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys of some examples.

    Attributes:
        start: `[batch]` uint32.
        increment: `[batch]` uint32; the lowest bit is ignored.
    """

    start: object
    increment: object


def _as_words(numbers):
    """Any integers, as 32-bit words; XLA has no range of uint32, hence the cast."""
    return ops.cast(ops.convert_to_tensor(numbers), "uint32")


def number_of(name):
    """Returns a 32-bit number for a purpose such as `"dropout"`, to fold into a key."""
    return zlib.crc32(name.encode("utf-8"))


def fold_in(keys, number):
    """Derives other keys.

    Args:
        keys: `Keys` of `[batch]` examples.
        number: an integer, or integers `[batch]`; a string stands for its `number_of`.

    Returns:
        `Keys` as unrelated to `keys` as to those of any other number.
    """
    if isinstance(number, str):
        number = number_of(number)
    number = _word(number) if isinstance(number, int) else _as_words(number)
    start = mix(keys.start + mix(number * _word(_GOLDEN) + _word(1)))
    increment = mix(ops.bitwise_xor(keys.increment, start) + _word(_GOLDEN))
    return Keys(start, increment)


def example_keys(seed, step, example_index):
    """Returns the keys of the examples of one step.

    Args:
        seed: integer, the run's seed.
        step: scalar integer tensor or integer.
        example_index: `[batch]` integers, the index of each example in the *global* batch.

    Returns:
        `Keys` of `[batch]` examples, whatever replica or microbatch they are in.
    """
    index = _as_words(example_index)
    zeros = index * _word(0)
    seed = int(seed)
    keys = Keys(zeros + _word(seed), zeros + _word(seed >> 32))
    return fold_in(fold_in(keys, _as_words(step) + zeros), index)


def random_bits(keys, count):
    """Draws 32-bit words.

    Args:
        keys: `Keys` of `[batch]` examples.
        count: number of words an example.

    Returns:
        `[batch, count]` uint32, uniformly distributed.
    """
    index = ops.cast(ops.arange(count, dtype="int32"), "uint32")
    odd = ops.bitwise_or(keys.increment, _word(1))
    return mix(keys.start[:, None] + index[None, :] * odd[:, None])


def random_uniform(keys, count):
    """Draws numbers in [0, 1).

    Args:
        keys: `Keys` of `[batch]` examples.
        count: how many an example.

    Returns:
        `[batch, count]` float32, multiples of 2**-24.
    """
    upper = ops.right_shift(random_bits(keys, count), _word(8))
    return ops.cast(ops.cast(upper, "int32"), "float32") * np.float32(2.0**-24)


def random_below(keys, count, limit):
    """Draws integers in [0, limit) by multiplying and shifting; the bias is below limit / 2**24.

    Args:
        keys: `Keys` of `[batch]` examples.
        count: how many an example.
        limit: a positive integer below 2**24.

    Returns:
        `[batch, count]` int32.
    """
    drawn = ops.cast(random_uniform(keys, count) * np.float32(limit), "int32")
    return ops.minimum(drawn, limit - 1)


def keep_mask(keys, shape, drop_rate):
    """Decides for every element whether dropout keeps it.

    Args:
        keys: `Keys` of `[batch]` examples.
        shape: the shape of one example, a tuple of integers, or scalar tensors where they are not known.
        drop_rate: probability of dropping, in [0, 1).

    Returns:
        `[batch, *shape]` boolean tensor, true where the element is kept.
    """
    bits = random_bits(keys, math.prod(shape))
    return ops.reshape(bits >= _word(int(drop_rate * 2**32)), (-1, *shape))
