"""A window of microbatches and one update in a loop of one's own: with `GradientAccumulation`, or bare.

The bare one makes the gradients of as many microbatches and updates with those of the last. Both share a process and the
compiled program that makes the gradients: what two processes take for the same differs by more than what is measured.
"""

from tools.benchmark.peers import protocol
from tools.benchmark.workers.train_step import PreparedStep, choose_programs


def prepare(settings):
    """See `protocol.serve`."""
    choose_programs()
    import tensorflow as tf

    from trainer import randomness
    from trainer.optimizers import recipes
    from trainer.optimizers.accumulation import GradientAccumulation
    from trainer.optimizers.keras_optimizer import KerasOptimizer
    from trainer.optimizers.schedules import ConstantSchedule

    prepared = PreparedStep(settings)
    task, model = prepared.task, prepared.state.model
    variables = model.trainable_variables
    inner = KerasOptimizer(recipes.adamw(learning_rate=ConstantSchedule(peak=settings["learning_rate"])), model)
    optimizer = GradientAccumulation(inner, steps=settings["window"], reduction="weighted")
    optimizer.build(variables)
    (loss_name,) = task.loss_coefficients

    @tf.function(jit_compile=True, autograph=False)
    def gradients_of(examples):
        keys = randomness.example_keys(0, tf.constant(0, tf.int64), examples["example_index"])
        features = task.prepare(examples, randomness.fold_in(keys, "prepare"))
        with tf.GradientTape() as tape:
            loss = task.sums(model, features, randomness.fold_in(keys, "dropout")).losses[loss_name]
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        return loss, tf.reduce_sum(task.weights(features)[loss_name]), gradients

    @tf.function(autograph=False)
    def accumulated(examples):
        loss, weight, gradients = gradients_of(examples)
        optimizer.count(weight)
        optimizer.apply(gradients, variables)
        return loss

    @tf.function(autograph=False)
    def bare(examples):
        loss, _, gradients = gradients_of(examples)
        # What is not used would not be computed.
        return loss, tf.stack([tf.reshape(gradient, [-1])[0] for gradient in gradients])

    @tf.function(autograph=False)
    def updated(examples):
        loss, _, gradients = gradients_of(examples)
        inner.apply(gradients, variables)
        return loss

    examples = prepared.examples()

    def wrapped_window():
        for _ in range(settings["window"]):
            loss = accumulated(examples)
        return float(loss)

    def bare_window():
        for _ in range(settings["window"] - 1):
            bare(examples)
        return float(updated(examples))

    return {}, {"bare": protocol.timed_steps(bare_window), "wrapped": protocol.timed_steps(wrapped_window)}


if __name__ == "__main__":
    protocol.serve(prepare)
