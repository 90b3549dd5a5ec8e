"""Numbers as people read them."""

import pytest

from trainer.amounts import byte_count, duration, quantity


@pytest.mark.parametrize(
    ("number", "text"), [(812.3, "812"), (9.71, "9.71"), (104_000, "104k"), (1_350_000, "1.35M"), (12_345, "12.3k")]
)
def test_quantities_are_short(number, text):
    assert quantity(number) == text


def test_durations_read_as_clocks():
    assert [duration(s) for s in (0, 92, 3661, 86_400 * 2 + 11_045)] == ["0:00:00", "0:01:32", "1:01:01", "2 d 3:04:05"]


def test_bytes_come_in_binary_units():
    assert [byte_count(n) for n in (512, 1536, 3 << 20, 5 << 29)] == ["512 B", "1.5 KiB", "3.0 MiB", "2.5 GiB"]
