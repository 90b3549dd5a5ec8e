"""`optimizers`: one update of all of a BERT's parameters, and what accumulating by the wrapper adds to a window."""

import contextlib
import math

from tools.benchmark import processes
from tools.benchmark.rounds import cpu_seconds_per_step, median, ratios, spread, take_turns
from tools.benchmark.tables import Findings

OURS, KERAS, COMPILED_KERAS, PYTORCH = "bert-trainer", "keras", "keras, compiled", "pytorch, fused"
MEMORY = "memory"
CLIPPED = ", clipping"
BARE, WRAPPED = "bare", "wrapped"

# Name on the command line -> script.
PEERS = {"pytorch": "pytorch_adamw.py"}

_BASE = {"num_layers": 12, "hidden_size": 768, "feed_forward_size": 3072, "vocabulary_size": 30522}
# AdamW reads gradient, value and two moments, and writes all but the gradient; float32.
_BYTES_PER_PARAMETER = 7 * 4
_ADDITION_BYTES_PER_PARAMETER = 3 * 4


def bert_shapes(*, num_layers, hidden_size, feed_forward_size, vocabulary_size, max_length=512):
    """Returns the shapes of the parameters of BERT with its masked-language-model head, lists of integers."""
    hidden, inner = [hidden_size], [feed_forward_size]
    square, up, down = hidden + hidden, hidden + inner, inner + hidden
    layer = 4 * [square, hidden] + 2 * [hidden] + [up, inner, down, hidden] + 2 * [hidden]
    embeddings = [[vocabulary_size, hidden_size], [max_length, hidden_size], [2, hidden_size], hidden, hidden]
    head = [square, hidden, hidden, hidden, [vocabulary_size]]
    return embeddings + num_layers * layer + head


def measure(settings, report):
    """Measures updates at two sizes, then windows.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    own = {name: getattr(settings, name) for name in _BASE}
    updates, absent = {}, {}
    for sizes in (own, _BASE) if settings.base_updates else (own,):
        shapes = bert_shapes(**sizes)
        updates[sum(map(math.prod, shapes))] = _measure_updates(settings, shapes, absent, report)
    windows = {BARE: [], WRAPPED: []}
    with processes.worker("window", settings.for_process(window=settings.time_accumulation)) as process:
        report(f"windows of {settings.time_accumulation} microbatches, {settings.rounds} rounds")
        for _ in range(settings.rounds):
            for name, answers in windows.items():
                answers.append(process.ask(name, seconds=settings.round_seconds))
    return summarize(settings, updates, windows, absent)


def _measure_updates(settings, shapes, absent, report):
    with contextlib.ExitStack() as stack:

        def start(kind, **more):
            return stack.enter_context(processes.worker("update", {"shapes": shapes, "kind": kind, **more}))

        present = {}
        for clip_norm, suffix in ((None, ""), (1.0, CLIPPED)):
            present[OURS + suffix] = start("ours", clip_norm=clip_norm)
            present[KERAS + suffix] = start("keras", clip_norm=clip_norm)
            present[COMPILED_KERAS + suffix] = start("keras", clip_norm=clip_norm, jit_compile=True)
            python = settings.peer_python.get("pytorch")
            peer = processes.peer("pytorch", PEERS["pytorch"], {"shapes": shapes, "clip_norm": clip_norm}, python)
            stack.enter_context(peer)
            if peer.absent:
                absent[PYTORCH] = f"absent: {peer.absent}"
            else:
                present[PYTORCH + suffix] = peer
        present[MEMORY] = start("memory")
        report(
            f"updates of {sum(map(math.prod, shapes)):,} parameters, {settings.rounds} rounds of {len(present)} systems"
        )
        # An update takes a hundredth of a step.
        return take_turns(present, settings.rounds, seconds=settings.round_seconds / 5)


def summarize(settings, updates, windows, absent):
    """Turns answers into findings.

    Args:
        settings: `Settings`.
        updates: `{number of parameters: {system: [answer to each round's `run`]}}`.
        windows: `{BARE or WRAPPED: [answer to each round's `run`]}`.
        absent: `{name: why it was not measured}`.
    """
    rows, notes, numbers = [], [], {"updates": {}, "absent": absent}
    for parameters, answers in updates.items():
        seconds = {name: [median(answer["step_seconds"]) for answer in rounds] for name, rounds in answers.items()}
        numbers["updates"][str(parameters)] = {"seconds": seconds, "ours_against_it": {}}
        for name, times in seconds.items():
            if name == MEMORY:
                continue
            cells = ("", "")
            if not name.startswith(OURS):
                own = seconds[OURS + (CLIPPED if name.endswith(CLIPPED) else "")]
                times_ours = ratios(own, times)
                numbers["updates"][str(parameters)]["ours_against_it"][name] = times_ours
                low, middle, high = spread(times_ours)
                cells = (f"{middle:.2f}", f"{low:.2f}-{high:.2f}")
            rows.append((f"{parameters / 1e6:.1f} M, {name}", f"{1000 * median(times):.1f}", *cells))
        least = [_BYTES_PER_PARAMETER / _ADDITION_BYTES_PER_PARAMETER * second for second in seconds[MEMORY]]
        against = ratios(seconds[OURS], least)
        numbers["updates"][str(parameters)]["ours_against_memory"] = against
        rate = _ADDITION_BYTES_PER_PARAMETER * parameters / median(seconds[MEMORY])
        low, middle, high = spread(against)
        notes.append(
            f"{parameters / 1e6:.1f} M: memory moves {rate / 1e9:.1f} GB/s in an addition in place; the "
            f"{_BYTES_PER_PARAMETER * parameters / 1e9:.2f} GB of an update would take {1000 * median(least):.1f} ms, ours "
            f"takes {middle:.2f} times that ({low:.2f} to {high:.2f} per round)"
        )
    seconds = {name: [median(answer["step_seconds"]) for answer in rounds] for name, rounds in windows.items()}
    cost = [ratio - 1 for ratio in ratios(seconds[WRAPPED], seconds[BARE])]
    cpu = {name: [cpu_seconds_per_step(answer) for answer in rounds] for name, rounds in windows.items()}
    cpu_cost = [ratio - 1 for ratio in ratios(cpu[WRAPPED], cpu[BARE])]
    numbers["window_seconds"], numbers["wrapper_cost"], numbers["wrapper_cost_by_cpu"] = seconds, cost, cpu_cost
    low, middle, high = spread(cost)
    notes.append(
        f"GradientAccumulation over {settings.time_accumulation} microbatches of {settings.microbatch} rows and an update: "
        f"{median(seconds[WRAPPED]):.2f} s against {median(seconds[BARE]):.2f} s bare, {middle:+.1%} ({low:+.1%} to "
        f"{high:+.1%} per round; by CPU seconds {median(cpu_cost):+.1%})"
    )
    notes += [f"{name}: {reason}" for name, reason in absent.items()]
    title = "One update of all parameters by AdamW"
    return Findings(title, ("", "ms", "ours / it", "per round"), tuple(rows), tuple(notes), numbers)
