"""The arithmetic of the report: systems take turns, and what counts is the ratio within a round, then its median."""

import statistics


def median(values):
    """Returns the median of numbers; None of none."""
    values = list(values)
    return statistics.median(values) if values else None


def ratios(numerators, denominators):
    """Returns the ratio of each round.

    A machine that is busy in one round slows down everyone in it, so the ratio of neighbours says more than the ratio
    of two medians.

    Args:
        numerators, denominators: one number a round.
    """
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def spread(values):
    """Returns (smallest, median, greatest) of numbers."""
    values = list(values)
    return min(values), median(values), max(values)


def rate(amount, step_seconds):
    """Returns amounts per second of a round.

    Args:
        amount: what one step does: tokens, rows, floating-point operations.
        step_seconds: the duration of each step of the round.
    """
    return amount * len(step_seconds) / sum(step_seconds)


def cpu_seconds_per_step(answer):
    """Returns the processor seconds, of all threads, that a step took on average in a round."""
    return answer["cpu_seconds"] / len(answer["step_seconds"])


def take_turns(processes, rounds, **arguments):
    """Lets processes run one after another, again and again: A B C, A B C, ...

    Args:
        processes: `{name: MeasuredProcess}`.
        rounds: how often.
        arguments: of the command `run`.

    Returns:
        `{name: [answer of each round]}`.
    """
    answers = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            answers[name].append(process.ask("run", **arguments))
    return answers
