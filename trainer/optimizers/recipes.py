"""Optimizers by their names: a rule and transformations that are a paper's algorithm, to which more can be added.

What all of them take:

    learning_rate: a schedule, see `trainer.optimizers.schedules`.
    clip_norm: greatest global norm of the gradients, or None.
    exclude: `Selection` of the parameters without weight decay and layer adaptation; biases and normalisations by default.
    transformations: more `Transformation`s, such as `Lookahead`; each goes behind the recipe's own of its stage.
"""

from trainer.optimizers.optimizer import STAGES, Optimizer
from trainer.optimizers.rules import AdaFactor, Adam, GradientDescent, Lion, Muon
from trainer.optimizers.transformations import (
    BIASES_AND_NORMALIZATIONS,
    ChangeMomentum,
    LarsScaling,
    LayerAdaptation,
    WeightDecay,
)


def _decay(rate, exclude):
    return WeightDecay(rate=rate, exclude=exclude or BIASES_AND_NORMALIZATIONS)


def _optimizer(rule, learning_rate, clip_norm, own, more):
    ordered = sorted((*own, *more), key=lambda each: STAGES.index(each.stage))  # stable: the recipe's own come first
    return Optimizer(rule=rule, learning_rate=learning_rate, transformations=tuple(ordered), clip_norm=clip_norm)


def sgd(
    *, learning_rate, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=None, exclude=None, transformations=()
):
    """Gradient descent with momentum and decoupled weight decay."""
    rule = GradientDescent(momentum=momentum, nesterov=nesterov)
    return _optimizer(
        rule, learning_rate, clip_norm, (_decay(weight_decay, exclude),) if weight_decay else (), transformations
    )


def adamw(
    *,
    learning_rate,
    weight_decay=0.01,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    bias_correction=True,
    clip_norm=1.0,
    exclude=None,
    transformations=(),
):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2)."""
    rule = Adam(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, bias_correction=bias_correction)
    return _optimizer(rule, learning_rate, clip_norm, (_decay(weight_decay, exclude),), transformations)


def stable_adamw(
    *,
    learning_rate,
    weight_decay=0.01,
    beta_1=0.9,
    beta_2=0.98,
    epsilon=1e-6,
    clip_norm=None,
    exclude=None,
    transformations=(),
):
    """StableAdamW (Wortsman et al. 2023, arXiv 2304.13013), with the settings of ModernBERT (arXiv 2412.13663)."""
    rule = Adam(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, clip_update=True)
    return _optimizer(rule, learning_rate, clip_norm, (_decay(weight_decay, exclude),), transformations)


def lamb(
    *,
    learning_rate,
    weight_decay=0.01,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    bias_correction=True,
    least_ratio=None,
    greatest_ratio=None,
    clip_norm=1.0,
    exclude=None,
    transformations=(),
):
    """LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2): weight decay, then layer adaptation, of Adam's direction."""
    exclude = exclude or BIASES_AND_NORMALIZATIONS
    rule = Adam(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, bias_correction=bias_correction)
    own = (
        _decay(weight_decay, exclude),
        LayerAdaptation(least_ratio=least_ratio, greatest_ratio=greatest_ratio, exclude=exclude),
    )
    return _optimizer(rule, learning_rate, clip_norm, own, transformations)


def lars(
    *,
    learning_rate,
    weight_decay=0.0005,
    coefficient=0.001,
    momentum=0.9,
    clip_norm=None,
    exclude=None,
    transformations=(),
):
    """LARS (You et al. 2017, arXiv 1708.03888, algorithm 1)."""
    scaling = LarsScaling(
        coefficient=coefficient, weight_decay=weight_decay, exclude=exclude or BIASES_AND_NORMALIZATIONS
    )
    own = (scaling, ChangeMomentum(momentum=momentum))
    return _optimizer(GradientDescent(), learning_rate, clip_norm, own, transformations)


def lion(
    *,
    learning_rate,
    weight_decay=0.1,
    beta_1=0.9,
    beta_2=0.99,
    clip_norm=1.0,
    exclude=None,
    transformations=(),
):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2)."""
    return _optimizer(
        Lion(beta_1=beta_1, beta_2=beta_2), learning_rate, clip_norm, (_decay(weight_decay, exclude),), transformations
    )


def adafactor(
    *,
    learning_rate,
    weight_decay=0.0,
    decay_exponent=0.8,
    clip_threshold=1.0,
    scale_by_parameter=True,
    clip_norm=None,
    exclude=None,
    transformations=(),
):
    """AdaFactor (Shazeer and Stern 2018, arXiv 1804.04235); `relative_step_schedule` is its paper's learning rate."""
    rule = AdaFactor(
        decay_exponent=decay_exponent, clip_threshold=clip_threshold, scale_by_parameter=scale_by_parameter
    )
    return _optimizer(
        rule, learning_rate, clip_norm, (_decay(weight_decay, exclude),) if weight_decay else (), transformations
    )


def muon(
    *,
    learning_rate,
    weight_decay=0.1,
    momentum=0.95,
    beta_1=0.9,
    beta_2=0.95,
    epsilon=1e-8,
    clip_norm=1.0,
    exclude=None,
    transformations=(),
):
    """Muon for the matrices of hidden layers, AdamW for embeddings and vectors (Liu et al. 2025, arXiv 2502.16982)."""
    rule = Muon(momentum=momentum, rest=Adam(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon))
    return _optimizer(rule, learning_rate, clip_norm, (_decay(weight_decay, exclude),), transformations)
