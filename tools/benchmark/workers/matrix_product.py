"""The machine's own rate: float32 matrix products by TensorFlow, of the shapes that the measured model is made of."""

from tools.benchmark.peers import protocol


def prepare(settings):
    """See `protocol.serve`."""
    import tensorflow as tf

    tokens = settings["rows"] * settings["length"]
    hidden, width = settings["hidden_size"], settings["feed_forward_size"]
    inner, outer = (tf.random.normal(shape) for shape in ((hidden, width), (width, hidden)))
    narrow, wide = tf.random.normal((tokens, hidden)), tf.random.normal((tokens, width))
    repeats = max(1, int(1e10 / (4 * tokens * hidden * width)))  # about 1e10 operations a step

    def step():
        for _ in range(repeats):
            tf.matmul(narrow, inner)
            last = tf.matmul(wide, outer)
        return float(last[0, 0])

    operations = repeats * 2 * (2 * tokens * hidden * width)
    return {"operations_per_step": operations}, {"run": protocol.timed_steps(step)}


if __name__ == "__main__":
    protocol.serve(prepare)
