"""One update of many variables: by our AdamW, by Keras's, or a plain addition, for the memory's rate."""

from tools.benchmark.peers import protocol
from tools.benchmark.workers.train_step import choose_programs

_LEARNING_RATE, _WEIGHT_DECAY = 1e-4, 0.01


def _optimizer(settings):
    import keras

    clip_norm = settings["clip_norm"]
    if settings["kind"] == "keras":
        return keras.optimizers.AdamW(_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, global_clipnorm=clip_norm)
    from trainer.optimizers import recipes
    from trainer.optimizers.keras_optimizer import KerasOptimizer
    from trainer.optimizers.schedules import ConstantSchedule

    rate = ConstantSchedule(peak=_LEARNING_RATE)
    return KerasOptimizer(recipes.adamw(learning_rate=rate, weight_decay=_WEIGHT_DECAY, clip_norm=clip_norm))


def prepare(settings):
    """See `protocol.serve`."""
    choose_programs()
    import keras
    import numpy as np
    import tensorflow as tf

    generator = np.random.default_rng(0)

    def draw(shape, scale):
        return scale * generator.standard_normal(shape, dtype=np.float32)

    variables = [
        keras.Variable(draw(shape, 0.02), name=f"variable_{number}") for number, shape in enumerate(settings["shapes"])
    ]
    gradients = [tf.constant(draw(shape, 0.01)) for shape in settings["shapes"]]
    if settings["kind"] == "memory":

        def update(gradients):
            for variable, gradient in zip(variables, gradients, strict=True):
                variable.value.assign_add(gradient)

    else:
        optimizer = _optimizer(settings)
        optimizer.build(variables)

        def update(gradients):
            optimizer.apply(gradients, variables)

    compiled = settings["kind"] == "memory" or settings.get("jit_compile", False)
    program = tf.function(update, autograph=False, jit_compile=compiled)

    def step():
        program(gradients)
        return 0.0

    return {"versions": f"tensorflow {tf.__version__}, keras {keras.__version__}"}, {"run": protocol.timed_steps(step)}


if __name__ == "__main__":
    protocol.serve(prepare)
