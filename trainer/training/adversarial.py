"""Adversarial training: a loss that counts how much it would rise if word vectors moved a little.

Both options look at the loss of the whole global batch, divided by the weights of the whole global batch, so that what
they do does not depend on how the batch was split.
"""

import dataclasses
import math

import tensorflow as tf


def _check_positive(name, value):
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}; for no adversarial training leave it out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastGradient:
    """The fast gradient method: trains with the table of word embeddings moved to where the loss is greater.

    With g the gradient of the global batch's loss with respect to the whole table, the update is that of the loss at
    `table + epsilon * g / (|g| + 1e-8)`, applied to the table as it was. Examples and dropout masks are the same for both
    gradients. Goodfellow et al. 2015 (arXiv 1412.6572), for texts Miyato et al. 2017 (arXiv 1605.07725); they move the
    vectors of each sequence, while moving the table itself is Su Jianlin's variant for bert4keras
    (https://kexue.fm/archives/7234).

    A step costs a second forward pass, most of a second backward pass, and one more all-reduce, of one table.

    Args:
        epsilon: Euclidean length of the move.
    """

    epsilon: float = 0.5

    # The loss at the table as it is, and |g|. What a step reports as its loss is that whose gradient is applied.
    metric_names = ("clean_loss", "embedding_gradient_norm")

    def __post_init__(self):
        _check_positive("fast_gradient.epsilon", self.epsilon)

    def perturbed(self, table, gradient, gradient_norm):
        """Returns the table moved along a gradient; the table itself if that is zero or not finite.

        Args:
            table: `[vocabulary, size]` float32.
            gradient: `[vocabulary, size]` float32.
            gradient_norm: scalar float32, its Euclidean norm.
        """
        moved = table + (self.epsilon / (gradient_norm + 1e-8)) * gradient
        return tf.where(tf.math.is_finite(gradient_norm) & (gradient_norm > 0), moved, table)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientPenalty:
    """Adds to the loss L of the global batch `coefficient / 2 * sum over its tokens of |dL / d word vector|^2`.

    The word vector is what was looked up for one token of one example, so that the sum is one over examples. To first
    order this is what moving each vector along its gradient adds to the loss (https://kexue.fm/archives/7234).

    A step takes second derivatives, so more than twice the time, and more memory for each microbatch.

    Args:
        coefficient: weight of the penalty. L is a mean over the batch, so gradients of single examples are small, and the
            penalty falls with the size of the global batch.
    """

    coefficient: float = 1.0

    # The penalty; what a step reports as its loss contains it.
    metric_names = ("gradient_penalty",)

    def __post_init__(self):
        _check_positive("gradient_penalty.coefficient", self.coefficient)

    def penalty(self, gradient):
        """Returns the penalty, a scalar, for gradients `[examples, length, size]` float32."""
        return 0.5 * self.coefficient * tf.reduce_sum(tf.square(gradient))
