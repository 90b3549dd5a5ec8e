"""`step`: tokens per second of the train step, the trainer's and its peers', taking turns in one run."""

import contextlib

from tools.benchmark import processes
from tools.benchmark.rounds import cpu_seconds_per_step, median, rate, ratios, spread, take_turns
from tools.benchmark.tables import Findings
from trainer.errors import TrainingFailed

OURS = "bert-trainer"
MATRIX_PRODUCT = "matrix product"

# Name on the command line and in the report -> script.
PEERS = {
    "keras_hub": "keras_hub_bert.py",
    "model_garden": "model_garden_bert.py",
    "hugging_face": "hugging_face_bert.py",
    "bert4keras": "bert4keras_bert.py",
}


def measure(settings, report):
    """Measures every system that is installed.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(processes.worker("train_step", settings.for_process()))
        report(f"{OURS}: {ours.information['versions']}")
        present = {OURS: ours}
        absent = {}
        for name, script in PEERS.items():
            process = _start_peer(name, script, settings, stack, absent)
            if process is not None:
                report(f"{name}: {process.information['versions']}")
                present[name] = process
            else:
                report(f"{name}: {absent[name]}")
        product = stack.enter_context(processes.worker("matrix_product", settings.for_process()))
        present[MATRIX_PRODUCT] = product
        report(f"{settings.rounds} rounds of {len(present)} x {settings.round_seconds:g} s")
        answers = take_turns(present, settings.rounds, seconds=settings.round_seconds)
        information = {name: process.information for name, process in present.items()}
    return summarize(settings, information, answers, absent)


def _start_peer(name, script, settings, stack, absent):
    """Returns the peer's process, or None with the reason in `absent`: a peer that fails ends nobody's benchmark."""
    try:
        process = processes.peer(name, script, settings.for_process(), settings.peer_python.get(name))
    except TrainingFailed as error:
        absent[name] = f"failed: {error}"
        return None
    stack.enter_context(process)
    if process.absent:
        absent[name] = f"absent: {process.absent}"
        return None
    return process


def summarize(settings, information, answers, absent):
    """Turns the answers of all rounds into findings.

    Args:
        settings: `Settings`.
        information: `{name: what the process said of itself}`.
        answers: `{name: [answer to each round's `run`]}`.
        absent: `{name: why it was not measured}`.
    """
    tokens = settings.microbatch * settings.length
    rates = {name: [rate(tokens, answer["step_seconds"]) for answer in rounds] for name, rounds in answers.items()}
    product_rates = [
        rate(information[MATRIX_PRODUCT]["operations_per_step"], answer["step_seconds"])
        for answer in answers[MATRIX_PRODUCT]
    ]
    operations = information[OURS]["operations_per_step"]
    our_operations = [rate(operations, answer["step_seconds"]) for answer in answers[OURS]]
    shares = ratios(our_operations, product_rates)
    cpu = {name: [cpu_seconds_per_step(answer) for answer in rounds] for name, rounds in answers.items()}
    product_operations = information[MATRIX_PRODUCT]["operations_per_step"]
    cpu_shares = [
        (operations / ours) / (product_operations / product)
        for ours, product in zip(cpu[OURS], cpu[MATRIX_PRODUCT], strict=True)
    ]
    numbers = {
        "matrix_product_flops_per_second": product_rates,
        "model_flops_per_second": our_operations,
        "share_of_matrix_product": shares,
        "share_of_matrix_product_by_cpu": cpu_shares,
        "absent": absent,
        "systems": {},
    }
    rows = []
    for name in answers:
        if name == MATRIX_PRODUCT:
            continue
        times = [second for answer in answers[name] for second in answer["step_seconds"]]
        times_ours = ratios(rates[OURS], rates[name])
        cpu_ours = ratios(cpu[name], cpu[OURS])
        numbers["systems"][name] = {
            "versions": information[name]["versions"],
            "tokens_per_second": rates[name],
            "step_seconds": times,
            "cpu_seconds_per_step": cpu[name],
            "ours_against_it": times_ours,
            "ours_against_it_by_cpu": cpu_ours,
            "prepare_seconds": information[name]["prepare_seconds"],
            "peak_memory_bytes": answers[name][-1]["peak_memory_bytes"],
        }
        low, middle, high = spread(times_ours)
        rows.append(
            (
                name,
                f"{median(rates[name]):,.0f}",
                f"{median(times):.2f}",
                f"{median(cpu[name]):.2f}",
                *(
                    ("", "", "")
                    if name == OURS
                    else (f"{middle:.2f}", f"{low:.2f}-{high:.2f}", f"{median(cpu_ours):.2f}")
                ),
                f"{answers[name][-1]['peak_memory_bytes'] / 2**30:.2f}",
            )
        )
    low, middle, high = spread(shares)
    notes = (
        f"matrix products of float32: {median(product_rates) / 1e9:,.1f} GFLOP/s; the model by formula: "
        f"{median(our_operations) / 1e9:,.1f} GFLOP/s, {middle:.0%} of it ({low:.0%} to {high:.0%} per round; by CPU "
        f"seconds {median(cpu_shares):.0%})",
        *(f"{name}: {reason}" for name, reason in absent.items()),
    )
    title = (
        f"Train step: {settings.num_layers} layers, hidden {settings.hidden_size}, length {settings.length}, "
        f"{settings.microbatch} rows, float32, CPU; {len(shares)} rounds"
    )
    columns = ("system", "tokens/s", "step s", "CPU s", "ours / it", "per round", "by CPU", "GiB")
    return Findings(title, columns, tuple(rows), notes, numbers)
