"""`reader`: rows per second of the trainer's input pipeline against the barest one, and against per-example parsing."""

from tools.benchmark import processes
from tools.benchmark.rounds import median, ratios, spread
from tools.benchmark.tables import Findings

READERS = ("lanes", "bare", "parse_single_example")
_BATCH = 256
_MEANINGS = {
    "lanes": "lanes: seekable order, verified, decoded",
    "bare": "TFRecordDataset.batch + bulk decode_raw",
    "parse_single_example": "parse_single_example (tf.train.Example)",
}


def measure(settings, report):
    """Lets the readers take turns on the same rows, in one process.

    Args:
        settings: `Settings`.
        report: callable that shows one line to a person.

    Returns:
        `Findings`.
    """
    own = settings.for_process(reader_rows=settings.reader_rows, reader_batch=_BATCH)
    with processes.worker("reading", own) as process:
        report(f"{settings.rounds} rounds of {len(READERS)} readers")
        rates = {reader: [] for reader in READERS}
        for _ in range(settings.rounds):
            for reader in READERS:
                answer = process.ask("run", reader=reader, seconds=settings.round_seconds / len(READERS))
                rates[reader].append(answer["rows_per_second"])
    return summarize(settings, rates)


def summarize(settings, rates):
    """Turns rates into findings.

    Args:
        settings: `Settings`.
        rates: `{reader: [rows per second of each round]}`.
    """
    rows, against_bare = [], {}
    for reader in READERS:
        against_bare[reader] = ratios(rates[reader], rates["bare"])
        low, middle, high = spread(against_bare[reader])
        rows.append((_MEANINGS[reader], f"{median(rates[reader]):,.0f}", f"{middle:.2f}x", f"{low:.2f} to {high:.2f}"))
    title = f"Reader: {settings.reader_rows:,} rows of {settings.length} ids, elements of {_BATCH} rows"
    numbers = {"rows_per_second": rates, "against_bare": against_bare}
    return Findings(title, ("reader", "rows/s", "against bare", "per round"), tuple(rows), (), numbers)
