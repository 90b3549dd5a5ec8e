"""Which Cloud TPU can run TensorFlow, with which image and version, and about what it costs.

Names count TensorCores up to v4 and on v5p, chips on v5e (`v5litepod-N`) and v6e (cloud.google.com/tpu/docs/runtimes;
v5p-training; Levanter's table of slices). A slice of several machines has one client, on worker 0, and on every machine a
TensorFlow server of the image (`-pod-`), whose version must be the client's. Prices are list prices in US dollars from
memory, in 2025, for one region: an estimate before anything is made, not a bill.
"""

import dataclasses
import re

CAPACITIES = ("on_demand", "spot", "reserved")


@dataclasses.dataclass(frozen=True)
class _Generation:
    """What is the same for all sizes of a generation.

    Attributes:
        counts_cores: whether the number in the name counts TensorCores, two a chip, rather than chips.
        single: the numbers of chips that lie in one machine.
        chips_per_vm: of a slice of several machines.
        base_image: runtime version with a bare system for one machine; TensorFlow is installed from PyPI.
        pod_image: runtime version with the TensorFlow server for several machines.
        dollars: `{capacity: US dollars a chip and hour}`.
        refused: why TensorFlow does not run there; empty where it does.
    """

    counts_cores: bool
    single: tuple
    chips_per_vm: int
    base_image: str
    pod_image: str
    dollars: dict
    refused: str = ""


_POD_TENSORFLOW = "2.18.0"
_SINGLE_TENSORFLOW = "2.18.0"
_NO_TENSORFLOW = (
    "Google offers no TensorFlow for it (JAX and PyTorch only), and trials with TensorFlow 2.16 to 2.19 failed"
)

_GENERATIONS = {
    "v2": _Generation(True, (4,), 4, "tpu-ubuntu2204-base", "tpu-vm-tf-2.18.0-pod-pjrt", {"on_demand": 1.13}),
    "v3": _Generation(True, (4,), 4, "tpu-ubuntu2204-base", "tpu-vm-tf-2.18.0-pod-pjrt", {"on_demand": 2.20}),
    "v4": _Generation(True, (4,), 4, "tpu-ubuntu2204-base", "tpu-vm-tf-2.18.0-pod-pjrt", {"on_demand": 3.22}),
    "v5litepod": _Generation(
        False, (1, 4, 8), 4, "v2-alpha-tpuv5-lite", "tpu-vm-tf-2.18.0-pod-pjrt-v5e-and-v6", {"on_demand": 1.20}
    ),
    "v5p": _Generation(True, (4,), 4, "v2-alpha-tpuv5", "tpu-vm-tf-2.18.0-pod-pjrt", {"on_demand": 4.20}),
    "v6e": _Generation(False, (1, 4, 8), 4, "v2-alpha-tpuv6e", "", {"on_demand": 2.70}, _NO_TENSORFLOW),
    "tpu7x": _Generation(
        True, (4,), 4, "", "", {}, "the Cloud TPU API does not offer it, and there is no TensorFlow for it"
    ),
}
_SPOT_SHARE = 0.5  # spot costs between a third and two thirds of the list price


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is asked for.

    Attributes:
        accelerator: name of the type, such as `v5litepod-8`.
        chips: number of chips.
        vms: number of machines.
        image: runtime version.
        tensorflow: version of `tensorflow-tpu` to install.
        dollars_per_hour: `{capacity: estimate for all of it}`; empty where no price is known.
        warnings: what is not known to work, though it was allowed.
    """

    accelerator: str
    chips: int
    vms: int
    image: str
    tensorflow: str
    dollars_per_hour: dict
    warnings: tuple = ()

    @property
    def is_pod(self):
        """Whether it has several machines."""
        return self.vms > 1


def plan_machine(accelerator, *, image=None, tensorflow=None, allow_untested=False):
    """Returns the `Machine` for an accelerator type.

    Args:
        accelerator: name of the type: `v2-8`, `v4-16`, `v5litepod-8`, `v5p-8`, ...
        image: runtime version, or None for the one of the table.
        tensorflow: version of TensorFlow, or None for the one of the image, or of the table.
        allow_untested: whether what is known not to work, or not known to, is tried all the same.

    Raises:
        ValueError: with the reason, a message for a person, if it is refused.
    """
    found = re.fullmatch(r"(v\d+[a-z]*|v5litepod|tpu7x)-(\d+)", accelerator)
    if not found or found[1] not in _GENERATIONS:
        known = ", ".join(f"{name}-N" for name in _GENERATIONS)
        raise ValueError(f"{accelerator!r} is not an accelerator type of Cloud TPU; these are: {known}")
    generation, number = _GENERATIONS[found[1]], int(found[2])
    chips = number // 2 if generation.counts_cores else number
    vms = 1 if chips in generation.single else chips // generation.chips_per_vm
    if chips < 1 or (chips not in generation.single and (chips % generation.chips_per_vm or vms < 2)):
        sizes = [size * (2 if generation.counts_cores else 1) for size in generation.single]
        more = generation.chips_per_vm * (2 if generation.counts_cores else 1)
        raise ValueError(
            f"there is no {accelerator}: {found[1]} has {', '.join(map(str, sizes))} and multiples of {more}"
        )
    image = image or (generation.pod_image if vms > 1 else generation.base_image)
    objections = [f"TensorFlow on {found[1]}: {generation.refused}"] if generation.refused else []
    of_image = re.search(r"tf-(\d+\.\d+\.\d+)", image)
    if vms > 1 and "-pod" not in image:
        objections.append(f"{accelerator} has {vms} machines: they need an image with -pod in its name, not {image!r}")
    if vms == 1 and "-pod" in image:
        objections.append(f"{accelerator} is one machine: {image!r} with -pod is for several")
    tensorflow = tensorflow or (of_image[1] if of_image else _POD_TENSORFLOW if vms > 1 else _SINGLE_TENSORFLOW)
    if vms > 1 and of_image and of_image[1] != tensorflow:
        objections.append(
            f"the machines of {accelerator} run the image's TensorFlow {of_image[1]}: the trainer's must be the same, "
            f"not {tensorflow}"
        )
    if tuple(map(int, tensorflow.split(".")[:2])) < (2, 18):
        objections.append(f"the trainer needs TensorFlow 2.18 or later, not {tensorflow}")
    if objections and not allow_untested:
        raise ValueError("; ".join(objections) + ". --allow_untested tries it all the same.")
    dollars = {name: price * chips for name, price in generation.dollars.items()}
    if "on_demand" in dollars:
        dollars |= {"spot": _SPOT_SHARE * dollars["on_demand"], "reserved": dollars["on_demand"]}
    return Machine(accelerator, chips, vms, image, tensorflow, dollars, tuple(objections))
