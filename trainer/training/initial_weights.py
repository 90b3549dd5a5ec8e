"""Weights that a run starts from: those of another run's checkpoint, for the same vocabulary."""

from trainer import storage
from trainer.errors import InputError
from trainer.training import checkpoint_content
from trainer.training.checkpoints import CheckpointManager


def checkpoint_location(path):
    """Finds a checkpoint of this trainer.

    Args:
        path: a run directory, its `checkpoints` folder, or one checkpoint in it.

    Returns:
        the folder of checkpoints and the step, None for the newest.
    """
    folder = str(path).rstrip("/")
    parent, _, name = folder.rpartition("/")
    if name.startswith("step_"):
        return parent, int(name.removeprefix("step_"))
    inside = storage.join(folder, "checkpoints")
    return (inside if storage.exists(inside) else folder), None


def check_vocabulary(manager, step, vocabulary_sha256):
    """Refuses a checkpoint whose model was trained with another vocabulary.

    Args:
        manager: `CheckpointManager`.
        step: of the checkpoint.
        vocabulary_sha256: of the vocabulary that texts are tokenized with now.

    Raises:
        InputError: if they differ.
    """
    saved = manager.read_manifest(step).get("metadata", {}).get("vocabulary")
    if saved is not None and saved != vocabulary_sha256:
        raise InputError(
            f"{manager.path(step)} was trained with another vocabulary (SHA-256 {saved[:12]}) than that of the data "
            f"(SHA-256 {vocabulary_sha256[:12]}): its weights mean other tokens. Prepare the data with its vocabulary."
        )


def load_initial_weights(path, state, vocabulary_sha256):
    """Reads weights, and nothing else, from a checkpoint of this trainer.

    Args:
        path: see `checkpoint_location`.
        state: the `TrainState` to read into.
        vocabulary_sha256: of the vocabulary that texts are tokenized with now.

    Returns:
        the step of the checkpoint.

    Raises:
        InputError: if there is no such checkpoint, or it is damaged or of another model or vocabulary.
    """
    folder, step = checkpoint_location(path)
    manager = CheckpointManager(folder, {}, is_chief=False)
    steps = manager.steps()
    if not steps or (step is not None and step not in steps):
        raise InputError(f"initial_weights {path!r} holds no checkpoint" + (f" of step {step}" if step else ""))
    step = steps[-1] if step is None else step
    if reason := manager.verify(step):
        raise InputError(f"initial_weights: the checkpoint {manager.path(step)} is damaged: {reason}")
    check_vocabulary(manager, step, vocabulary_sha256)
    checkpoint_content.read_into(
        checkpoint_content.flatten({"weights": state.checkpoint_variables()["weights"]}),
        manager.prefix(step),
        others_allowed=True,
    )
    return step
