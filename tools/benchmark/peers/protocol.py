"""How the benchmark and a process that it measures talk: settings as JSON in the first argument, then JSON lines.

The process answers once with what it is (`ready`) or why it cannot be (`absent`), then one line for each command line
that it reads. It ends when there are no more. This file is all that the peers share, and imports nothing but NumPy.
"""

import json
import os
import resource
import sys
import time

WARM_UP_STEPS = 2


def peak_memory_bytes():
    """Returns the most memory that this process ever held.

    The kernel's mark of this very program where there is one: `ru_maxrss` of a process also counts what its parent held
    when it started it.
    """
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def serve(prepare):
    """Runs a measured process.

    Args:
        prepare: callable `(settings) -> (information, actions)`: a dict for the `ready` line, and for each command name
            a callable that takes the command's arguments and returns a dict. An `ImportError` means: not installed.
    """
    settings = json.loads(sys.argv[1])
    # Libraries print; the answers must stay alone on their channel.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(content):
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    began = time.perf_counter()
    try:
        information, actions = prepare(settings)
    except ImportError as error:
        answer({"absent": str(error).strip().splitlines()[0]})
        return
    own = {"prepare_seconds": time.perf_counter() - began, "peak_memory_bytes": peak_memory_bytes()}
    answer({"ready": True, **own, **information})
    for line in sys.stdin:
        arguments = json.loads(line)
        result = actions[arguments.pop("command")](**arguments)
        answer({**result, "peak_memory_bytes": peak_memory_bytes()})


def timed_steps(step):
    """Makes the command `run` of a step, after letting it compile.

    Args:
        step: callable that does one step, waits until it is done, and returns its loss.

    Returns:
        a callable `(seconds, at_least) -> dict` that repeats the step for so long and reports each one's seconds, and
        the processor's seconds of all threads together, which other programs on the machine hardly change.
    """
    for _ in range(WARM_UP_STEPS):
        step()

    def run(seconds, at_least=1):
        times = []
        began, processor = time.perf_counter(), time.process_time()
        while len(times) < at_least or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            loss = step()
            times.append(time.perf_counter() - start)
        return {"step_seconds": times, "cpu_seconds": time.process_time() - processor, "loss": float(loss)}

    return run


def synthetic_batch(settings):
    """Makes rows of random tokens with some of them masked.

    Args:
        settings: dict with `rows`, `length`, `predictions`, `vocabulary_size`.

    Returns:
        int32 arrays: the input `[rows, length]`, the masked positions `[rows, predictions]`, and the tokens there.
    """
    import numpy

    generator = numpy.random.default_rng(0)
    rows, length, predictions = settings["rows"], settings["length"], settings["predictions"]
    special = min(1000, settings["vocabulary_size"] // 2)
    token_ids = generator.integers(special, settings["vocabulary_size"], (rows, length)).astype("int32")
    positions = numpy.sort(generator.permuted(numpy.tile(numpy.arange(length), (rows, 1)), axis=1)[:, :predictions])
    labels = numpy.take_along_axis(token_ids, positions, axis=1)
    numpy.put_along_axis(token_ids, positions, special - 1, axis=1)  # any token will do for [MASK]
    return token_ids, positions.astype("int32"), labels


def synthetic_sentences(settings):
    """Makes sentences of random tokens whose lengths are distributed as those of SST-2: 23 tokens on average.

    Args:
        settings: dict with `sentences`, `length` (the most tokens), `vocabulary_size`.

    Returns:
        int32 `[sentences, length]`, zeros behind each sentence, and the number of tokens of each `[sentences]`.
    """
    import numpy

    generator = numpy.random.default_rng(0)
    count, length = settings["sentences"], settings["length"]
    lengths = numpy.clip(generator.lognormal(3.0, 0.5, count), 4, length).astype("int32")
    token_ids = generator.integers(
        min(1000, settings["vocabulary_size"] // 2), settings["vocabulary_size"], (count, length)
    )
    return (token_ids * (numpy.arange(length) < lengths[:, None])).astype("int32"), lengths
