"""Export: a SavedModel with a serving signature, for programs that know nothing of this trainer."""

import tensorflow as tf

from trainer import storage
from trainer.errors import InputError


def export_model(task, model, folder):
    """Writes a SavedModel, with the vocabulary as an asset where the task has one.

    Args:
        task: the `Task`; says what the signatures compute.
        model: its model, with the weights to export.
        folder: where to; must not exist or be empty.

    Raises:
        InputError: if the folder holds something.
    """
    if storage.listing(folder):
        raise InputError(f"{folder} is not empty: give another --output")
    module = tf.Module()
    module.model_variables = [variable.value for variable in model.variables]
    signatures = task.serving_signatures(model)
    tf.saved_model.save(module, folder, signatures=signatures)
    assets = storage.join(folder, "assets.extra")
    storage.make_folder(assets)
    for name, content in task.serving_assets().items():
        storage.write_bytes(storage.join(assets, name), content)
