"""`weights`: how long pretrained weights take to load, against the time of reading the bytes of their file."""

from tools.benchmark import processes
from tools.benchmark.rounds import median, ratios, spread
from tools.benchmark.tables import Findings

READING = "bytes"
_MEANINGS = {
    READING: "bytes, to new memory",
    "safetensors": "safetensors' load_file",
    "hugging_face": "ours, Hugging Face",
    "tensorflow1": "ours, TensorFlow 1",
    "checkpoint": "ours, own checkpoint",
}
WARM, COLD = "warm", "cold"


def measure(settings, report):
    """Lets the ways of reading take turns, in one process.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    with processes.worker("loading", settings.for_process()) as process:
        caches = [WARM, COLD] if process.information["can_empty_cache"] else [WARM]
        answers = {cache: {way: [] for way in _MEANINGS} for cache in caches}
        for cache in caches:
            report(f"{settings.rounds} rounds of {len(_MEANINGS)} ways, page cache {cache}")
            for _ in range(settings.rounds):
                for way in _MEANINGS:
                    answers[cache][way].append(process.ask("run", way=way, cold=cache == COLD))
        return summarize(process.information["parameters"], process.information["bytes"], answers)


def summarize(parameters, size, answers):
    """Turns answers into findings.

    Args:
        parameters: number of the model's parameters.
        size: of a file, in bytes.
        answers: `{WARM or COLD: {way: [answer of each round]}}`; an answer has `seconds` and `cpu_seconds`.
    """
    rows, numbers = [], {"parameters": parameters, "bytes": size}
    for cache, of_cache in answers.items():
        numbers[cache] = {"seconds": {}, "cpu_seconds": {}, "against_bytes": {}, "against_bytes_by_cpu": {}}
        read, read_cpu = ([answer[name] for answer in of_cache[READING]] for name in ("seconds", "cpu_seconds"))
        for way, of_way in of_cache.items():
            seconds, cpu = ([answer[name] for answer in of_way] for name in ("seconds", "cpu_seconds"))
            against, by_cpu = ratios(seconds, read), ratios(cpu, read_cpu)
            for name, values in (("seconds", seconds), ("cpu_seconds", cpu)):
                numbers[cache][name][way] = values
            numbers[cache]["against_bytes"][way], numbers[cache]["against_bytes_by_cpu"][way] = against, by_cpu
            low, middle, high = spread(against)
            shown = (
                ("", "", "") if way == READING else (f"{middle:.2f}", f"{low:.2f}-{high:.2f}", f"{median(by_cpu):.2f}")
            )
            rows.append((f"{cache} {_MEANINGS[way]}", f"{median(seconds):.3f}", f"{median(cpu):.3f}", *shown))
    columns = ("page cache, way", "s", "CPU s", "x bytes", "per round", "by CPU")
    title = f"Loading {parameters:,} parameters, float32, {size / 2**20:,.0f} MiB"
    return Findings(title, columns, tuple(rows), (), numbers)
