"""Which part of this machine each of several trials gets that run at a time."""

import dataclasses
import itertools
import os

from launch.local import visible_gpus


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one trial.

    Attributes:
        gpus: the GPUs it sees, as CUDA_VISIBLE_DEVICES names them; None for all there are.
        cores: numbers of the processors it may use; empty for all.
    """

    gpus: tuple | None = None
    cores: tuple = ()

    @property
    def environment(self):
        """The variables that pin a trial to its GPUs."""
        if self.gpus is None:
            return {}
        # nvidia-smi counts GPUs in the order of the bus, CUDA by default does not.
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}

    def __str__(self):
        if self.gpus:
            return f"GPU {', '.join(self.gpus)}"
        return f"processor {', '.join(map(str, self.cores))}" if self.cores else ""


def share_out(parallel, gpus, cores):
    """Returns a list of slots.

    Args:
        parallel: number of trials at a time; None for one per GPU, or one on a machine without.
        gpus: names of the GPUs.
        cores: numbers of the processors this process may use.

    Raises:
        ValueError: if the GPUs cannot be shared out evenly.
    """
    count = parallel or max(1, len(gpus))
    if gpus:
        if count <= len(gpus) and len(gpus) % count == 0:
            share = len(gpus) // count
            return [Slot(tuple(gpus[index * share : (index + 1) * share])) for index in range(count)]
        if count % len(gpus) == 0:  # several on each
            return [Slot((gpus[index % len(gpus)],)) for index in range(count)]
        fits = [number for number in range(1, len(gpus) + 1) if len(gpus) % number == 0]
        raise ValueError(
            f"--parallel {count} does not share out the {len(gpus)} GPUs of this machine evenly: use "
            f"{', '.join(map(str, fits))} or a multiple of {len(gpus)}, or set CUDA_VISIBLE_DEVICES"
        )
    if count == 1:
        return [Slot()]
    if count >= len(cores):
        return [Slot(cores=(cores[index % len(cores)],)) for index in range(count)]
    ends = [len(cores) * index // count for index in range(count + 1)]
    return [Slot(cores=tuple(cores[begin:end])) for begin, end in itertools.pairwise(ends)]


def local_slots(parallel):
    """Returns the slots of this machine; see `share_out`."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return share_out(parallel, visible_gpus(os.environ), cores)
