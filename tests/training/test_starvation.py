"""The warning that devices wait for examples."""

import pytest

from trainer.training.starvation import StarvationWatch


class Machine:
    """A clock, processors, and what was reported."""

    def __init__(self, monkeypatch, cores=4):
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        self.now = self.processor_seconds = 0.0
        self.told = []
        self.watch = StarvationWatch(
            lambda busy: f"busy {busy:.2f}",
            self.told.append,
            clock=lambda: self.now,
            processor_seconds=lambda: self.processor_seconds,
        )

    def run(self, seconds, waiting, processors):
        for _ in range(round(seconds)):
            self.now += 1.0
            self.processor_seconds += processors
            self.watch.add(waiting, 1.0)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_waiting_is_told_with_the_processors_share_and_not_again_for_half_an_hour(machine):
    machine.run(29, waiting=0.5, processors=2.0)
    assert not machine.told
    machine.run(1, waiting=0.5, processors=2.0)
    assert machine.told == ["warning: 50% of the time went into waiting for examples: busy 0.50"]
    machine.run(1000, waiting=0.5, processors=2.0)
    assert len(machine.told) == 1
    machine.run(1000, waiting=0.5, processors=9.0)
    assert len(machine.told) == 2 and machine.told[1].endswith("busy 1.00")


def test_short_waits_are_not_told(machine):
    machine.run(600, waiting=0.14, processors=1.0)
    assert not machine.told
    machine.run(30, waiting=0.2, processors=1.0)  # of this window alone
    assert machine.told == ["warning: 20% of the time went into waiting for examples: busy 0.25"]
