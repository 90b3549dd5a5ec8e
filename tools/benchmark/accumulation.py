"""`accumulation`: what K microbatches in a step cost, in time and in memory, against K steps of one."""

import contextlib

from tools.benchmark import processes
from tools.benchmark.rounds import median, ratios, spread, take_turns
from tools.benchmark.tables import Findings


def measure(settings, report):
    """Measures time with both steps taking turns, and memory with each process on its own.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    with contextlib.ExitStack() as stack:
        present = {
            accumulation: stack.enter_context(_worker(settings, accumulation))
            for accumulation in (1, settings.time_accumulation)
        }
        report(f"{settings.rounds} rounds with K=1 and K={settings.time_accumulation}")
        answers = take_turns(present, settings.rounds, seconds=settings.round_seconds)
    peaks = {}
    for accumulation in (1, settings.memory_accumulation):
        report(f"peak memory with K={accumulation}")
        with _worker(settings, accumulation) as process:
            peaks[accumulation] = process.information["peak_memory_bytes"]  # after the steps that warm up
    return summarize(settings, answers, peaks)


def _worker(settings, accumulation):
    return processes.worker("train_step", settings.for_process(accumulation=accumulation))


def summarize(settings, answers, peaks):
    """Turns answers into findings.

    Args:
        settings: `Settings`.
        answers: `{accumulation steps: [answer to each round's `run`]}`, with 1 and `settings.time_accumulation`.
        peaks: `{accumulation steps: bytes}`, with 1 and `settings.memory_accumulation`.
    """
    many = settings.time_accumulation
    single, several = (
        [median(answer["step_seconds"]) for answer in answers[accumulation]] for accumulation in (1, many)
    )
    times = ratios(several, [many * seconds for seconds in single])
    memory = peaks[settings.memory_accumulation] / peaks[1]
    low, middle, high = spread(times)
    numbers = {
        "single_step_seconds": single,
        "accumulated_step_seconds": several,
        "accumulation": many,
        "time_against_single_steps": times,
        "peak_memory_bytes": {str(accumulation): peak for accumulation, peak in peaks.items()},
        "memory_against_single": memory,
    }
    rows = (
        (
            f"time of a step, K={many}",
            f"{median(several):.3f} s",
            f"{many} x {median(single):.3f} s",
            f"{middle:.3f}",
            f"{low:.3f} to {high:.3f}",
        ),
        (
            f"peak memory, K={settings.memory_accumulation}",
            f"{peaks[settings.memory_accumulation] / 2**20:,.0f} MiB",
            f"{peaks[1] / 2**20:,.0f} MiB",
            f"{memory:.3f}",
            "",
        ),
    )
    title = f"Gradient accumulation, microbatch {settings.microbatch}"
    return Findings(title, ("", "K", "K = 1", "ratio", "per round"), rows, (), numbers)
