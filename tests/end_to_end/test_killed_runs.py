"""`kill -9` at random moments: the run that goes on ends with the same bits as one that was never interrupted."""

import dataclasses
import os
import random
import signal

import pytest
import trainer_process

# One process that compiles, and several that load what it compiled: is a slow test because of their starts.
pytestmark = pytest.mark.slow

STEPS = 240
PARAMETERS = (f"steps={STEPS}", "eval_every=40", "checkpoint_every=5", "run.keep_checkpoints=2")
EARLY = (*PARAMETERS, f"checkpoint_every={STEPS}")


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: once `step` is logged, and `saving` says so also once a checkpoint is being written."""

    step: int
    saving: bool = False

    def has_come(self, run_dir):
        if trainer_process.last_step(run_dir) < self.step:
            return False
        return not self.saving or not all(trainer_process.checkpoint_folders(run_dir).values())


def moments():
    """Before the first checkpoint, in a save, and at random steps, in rising order.

    Steps are short and the machine may be busy, so a kill comes some steps late: the last moments leave room for it,
    and the first run writes no checkpoint before its end (see `EARLY`).
    """
    rng = random.Random(20)
    early = rng.randint(1, 3)
    later = sorted(rng.sample(range(20, STEPS // 2), 3))
    return [Moment(early), Moment(later[0]), Moment(later[1], saving=True), Moment(later[2])]


@pytest.fixture(scope="module")
def uninterrupted(tiny_gin, tmp_path_factory):
    """The reference, compiled by itself: its cache of compiled programs was empty."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer_process.train(tiny_gin, folder / "run", *PARAMETERS, XDG_CACHE_HOME=str(folder / "cache"))
    return folder / "run"


def test_a_run_killed_again_and_again_ends_with_the_bits_of_an_uninterrupted_one(tiny_gin, uninterrupted, tmp_path):
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    rng = random.Random(21)
    killed_at = []
    for number, moment in enumerate(moments()):
        arguments = trainer_process.trainer_arguments(tiny_gin, run_dir, *(PARAMETERS if number else EARLY))
        with trainer_process.Process(*arguments, XDG_CACHE_HOME=str(cache)) as process:
            process.wait_until(lambda moment=moment: moment.has_come(run_dir), f"{moment} of run {number}")
            if not moment.saving:
                process.let_run(rng.uniform(0, 0.01))
            process.send(signal.SIGKILL)
            assert process.finish().code == -signal.SIGKILL
        killed_at.append(trainer_process.last_step(run_dir))
        assert bool(number) == bool(trainer_process.checkpoint_folders(run_dir))
    assert killed_at == sorted(killed_at)
    assert killed_at[-1] < STEPS
    finished = trainer_process.train(tiny_gin, run_dir, *PARAMETERS, XDG_CACHE_HOME=str(cache))
    assert f"of {STEPS} from" in finished.output
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) > STEPS + STEPS // 40  # some steps were done twice

    assert trainer_process.metrics(run_dir) == trainer_process.metrics(uninterrupted)
    assert len(trainer_process.metrics(run_dir)) == STEPS
    assert trainer_process.metrics(run_dir, "eval") == trainer_process.metrics(uninterrupted, "eval")
    trainer_process.assert_same_bits(
        trainer_process.checkpoint_values(run_dir, STEPS), trainer_process.checkpoint_values(uninterrupted, STEPS)
    )


def compiled_programs(cache):
    """The files in which compiled programs are kept."""
    return {name for _, _, names in os.walk(cache) for name in names}


def test_two_uninterrupted_runs_have_the_same_bits_with_and_without_compiled_programs(
    tiny_gin, uninterrupted, tmp_path
):
    cache = uninterrupted.parent / "cache"
    programs = compiled_programs(cache)
    assert len(programs) == 2  # training and evaluation
    trainer_process.train(tiny_gin, tmp_path / "run", *PARAMETERS, XDG_CACHE_HOME=str(cache))
    assert compiled_programs(cache) == programs  # they were read, not compiled again
    assert trainer_process.metrics(tmp_path / "run") == trainer_process.metrics(uninterrupted)
    trainer_process.assert_same_bits(
        trainer_process.checkpoint_values(tmp_path / "run", STEPS),
        trainer_process.checkpoint_values(uninterrupted, STEPS),
    )
