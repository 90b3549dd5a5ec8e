"""Accumulation does not cost memory: what a step needs does not grow with the number of its microbatches."""

import os

import pytest
import trainer_process

# Prints the greatest memory that the process held during steps, in KiB: without the compilation before them, which
# takes more than the steps of so small a model do.
PEAK_OF_STEPS = """
import ctypes, gc, os, sys
sys.path[:0] = [os.path.join(os.getcwd(), "tests"), os.getcwd()]
from trainer.environment import import_tensorflow_quietly
import_tensorflow_quietly(os.environ)
import small_runs
from trainer.models.architecture import EncoderConfig

accumulation, microbatch = map(int, sys.argv[1:])
small_runs.LENGTH = 128
encoder = EncoderConfig(hidden_size=256, num_layers=2, num_heads=4, max_length=128)
run = small_runs.small_run(
    accumulation=accumulation,
    global_batch=accumulation * microbatch,
    task=small_runs.small_task(encoder=encoder),
    compile_step=True,
)
run.train(1)
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # starts the peak anew
run.train(3)
with open("/proc/self/status") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")))
"""


def peak_of_steps(accumulation, microbatch):
    finished = trainer_process.run_python("-c", PEAK_OF_STEPS, str(accumulation), str(microbatch))
    assert finished.code == 0, finished.text
    return int(finished.output)


@pytest.mark.slow  # compiles three models that are large enough to be seen
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel does not let a process reset its peak"
)
def test_32_microbatches_take_at_most_5_percent_more_memory_than_one():
    one = peak_of_steps(1, 8)
    assert peak_of_steps(32, 8) <= 1.05 * one
    assert peak_of_steps(1, 256) > 1.3 * one  # so much would show if microbatches were not taken one by one
