"""Checkpoints of this trainer as a source of weights."""

import re

from trainer import storage
from trainer.errors import InputError
from trainer.training.checkpoint_content import PREFIX, VALUE_SUFFIX
from trainer.training.checkpoints import MANIFEST_NAME, CheckpointManager
from trainer.weights.description import FILE_NAME, load_description
from trainer.weights.entries import Entry, Part
from trainer.weights.source import WeightSource, rows_of
from trainer.weights.tensors import CheckpointTensors


def checkpoint_location(path):
    """Finds a checkpoint of this trainer.

    Args:
        path: a run directory, its `checkpoints` folder, or one checkpoint in it.

    Returns:
        the folder of checkpoints and the step, None for the newest.
    """
    folder = str(path).rstrip("/")
    parent, _, name = folder.rpartition("/")
    if match := re.fullmatch(r"step_(\d{8}|[1-9]\d{8,})", name):
        return parent or ".", int(match[1])
    inside = storage.join(folder, "checkpoints")
    return (inside if storage.exists(inside) else folder), None


def _find(path):
    """Returns the `CheckpointManager`, the step and the `ModelDescription` of a checkpoint; None if there is no such."""
    folder, step = checkpoint_location(path)
    manager = CheckpointManager(folder, {}, is_chief=False)
    steps = manager.steps()
    if step is None and not steps:
        return None
    if step is not None and step not in steps:
        names = storage.listing(manager.path(step))
        if names and not {MANIFEST_NAME, f"{PREFIX}.index"} & {*names}:
            return None  # somebody else's folder
        raise InputError(f"{path} holds no checkpoint of step {step}")
    places = (folder.rpartition("/")[0] or ".", folder)
    home = next((place for place in places if storage.exists(storage.join(place, FILE_NAME))), None)
    if home is None:
        raise InputError(f"{places[0]} lacks {FILE_NAME}, which says what model its checkpoints are of")
    return manager, steps[-1] if step is None else step, load_description(home)


def describe_checkpoint(path):
    """Returns the `ModelDescription` of a checkpoint without looking into it; arguments and errors as `open_checkpoint`."""
    found = _find(path)
    return None if found is None else found[-1]


def open_checkpoint(path):
    """Opens a checkpoint of this trainer.

    Args:
        path: as in `checkpoint_location`.

    Returns:
        `WeightSource`; None if there is no such checkpoint.

    Raises:
        InputError: if the step that is asked for is not there, the checkpoint is damaged, or nothing says what it is of.
    """
    found = _find(path)
    if found is None:
        return None
    manager, step, description = found
    if reason := manager.verify(step):
        raise InputError(f"the checkpoint {manager.path(step)} is damaged: {reason}")
    tensors = CheckpointTensors(manager.prefix(step))
    entries = {}
    for full in tensors.shapes:
        if full.startswith("weights/"):
            name = full.removesuffix(VALUE_SUFFIX).split("/", 2)[2]
            entries[name] = Entry(name, (Part(full),), rows_of(name))
    kind = f"checkpoint of this trainer, step {step}"
    return WeightSource(kind, manager.path(step), description, entries, tensors)
