"""`fine_tuning`: the step and the predictions of a classifier of MiniLM's size, against transformers on PyTorch."""

import contextlib

from tools.benchmark import processes
from tools.benchmark.rounds import cpu_seconds_per_step, median, rate, ratios, spread, take_turns
from tools.benchmark.tables import Findings

OURS = "bert-trainer"
PEERS = {"hugging_face_classifier": "hugging_face_classifier.py"}

# The encoder of all-MiniLM-L6-v2, on sentences as those of SST-2.
SIZES = {
    "num_layers": 6,
    "hidden_size": 384,
    "num_heads": 12,
    "feed_forward_size": 1536,
    "length": 64,
    "rows": 32,
}
_SENTENCES = 4096
_MODES = {"step": "training step", "predict": "prediction, sorted", "predict_in_order": "prediction, in order"}
_NOTE = (
    "training: 32 rows of 64 tokens; prediction: 4096 sentences of 23 tokens on average in batches of 32, sorted by length "
    "(as ours always does), and in the order they came in (as peers do unless told); time of compilation is not in it"
)


def measure(settings, report):
    """Lets ours and the peer take turns.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    own = settings.for_process(**SIZES, sentences=_SENTENCES)
    answers, absent = {}, {}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(processes.worker("classifier", own))
        report(f"{OURS}: {ours.information['versions']}")
        present = {OURS: ours}
        for name, script in PEERS.items():
            process = stack.enter_context(processes.peer(name, script, own, settings.peer_python.get(name)))
            report(f"{name}: {process.absent or process.information['versions']}")
            if process.absent:
                absent[name] = process.absent
            else:
                present[name] = process
        for mode in _MODES:
            report(f"{settings.rounds} rounds of {_MODES[mode]}")
            able = {name: process for name, process in present.items() if mode in process.information["modes"]}
            if able:
                answers[mode] = take_turns(able, settings.rounds, mode=mode, seconds=settings.round_seconds / 2)
    return summarize(answers, absent)


def summarize(answers, absent):
    """Turns the answers of all rounds into findings.

    Args:
        answers: `{mode: {name: [answer of each round]}}`.
        absent: `{name: why it was not measured}`.
    """
    rows, numbers = [], {"absent": absent}
    for mode, of_mode in answers.items():
        amount = _SENTENCES if mode.startswith("predict") else SIZES["rows"]
        rates = {name: [rate(amount, answer["step_seconds"]) for answer in each] for name, each in of_mode.items()}
        # Ours predicts in one way alone, the better one: it is what peers' other ways are held against.
        base = rates.get(OURS) or numbers["predict"]["examples_per_second"][OURS]
        cpu = {name: [cpu_seconds_per_step(answer) for answer in each] for name, each in of_mode.items()}
        base_cpu = cpu.get(OURS) or numbers["predict"]["cpu_seconds"][OURS]
        numbers[mode] = {"examples_per_second": rates, "cpu_seconds": cpu}
        numbers[mode] |= {"ours_against_it": {}, "ours_against_it_by_cpu": {}}
        for name, each in rates.items():
            against = ratios(base, each)
            numbers[mode]["ours_against_it"][name] = against
            low, middle, high = spread(against)
            by_cpu = median(ratios(cpu[name], base_cpu))
            numbers[mode]["ours_against_it_by_cpu"][name] = by_cpu
            shown = ("", "", "") if name == OURS else (f"{middle:.2f}", f"{low:.2f}-{high:.2f}", f"{by_cpu:.2f}")
            rows.append((_MODES[mode], name, f"{median(each):,.1f}", f"{median(cpu[name]):.3f}", *shown))
    notes = (_NOTE, *(f"{name}: {reason}" for name, reason in absent.items()))
    columns = ("what", "system", "examples/s", "CPU s", "ours / it", "per round", "by CPU")
    return Findings("Fine-tuning MiniLM (6 layers, hidden 384), float32, CPU", columns, tuple(rows), notes, numbers)
