"""Weights that a run starts from: those of another run, or of another library."""

from trainer.errors import InputError
from trainer.optimizers.optimizer import check_patterns, matching
from trainer.training import checkpoint_content
from trainer.weights.loading import check_architecture, check_heads, check_same_vocabulary, load_weights
from trainer.weights.opening import open_weights


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


def names_to_load(parameters, reinitialize):
    """Returns the names of the parameters that are to be read, a set.

    Args:
        parameters: list of `Parameter`, all of a model.
        reinitialize: regular expressions; a parameter in whose name one is found keeps its random initial values.

    Raises:
        InputError: if an expression is found in no name.
    """
    try:
        check_patterns(reinitialize, parameters)
    except ValueError as error:
        raise InputError(f"run.reinitialize: {error}") from None
    return {parameter.name for parameter in parameters if not matching(reinitialize, parameter)}


def load_initial_weights(path, state, description, reinitialize=(), allow_missing=(), allow_unused=()):
    """Reads weights, and nothing else, from whatever holds some.

    Args:
        path: see `trainer.weights.opening.open_weights`.
        state: the `TrainState` to read into.
        description: `ModelDescription` of its model.
        reinitialize: regular expressions that choose parameters which are not read, see `names_to_load`.
        allow_missing, allow_unused: see `trainer.weights.loading.load_weights`.

    Returns:
        `trainer.weights.loading.Report`.

    Raises:
        InputError: if there are no such weights, or they are damaged, of another model or vocabulary, or their heads were
            trained for something else.
    """
    names = names_to_load(state.all_parameters, reinitialize)
    source = open_weights(path)
    check_architecture(source, description.encoder)
    check_same_vocabulary(source, description)
    weights = checkpoint_content.flatten(state.checkpoint_variables()["weights"])
    # Names of other sources lack the model's own.
    ours = {name: name.partition("/")[2] for name in weights}
    variables = {ours[name]: weights[name] for name in weights if name in names}
    kept = {ours[name] for name in weights if name not in names}
    check_heads(source, description, variables.keys() & {*source.names})
    return load_weights(source, variables, kept=kept, allow_missing=allow_missing, allow_unused=allow_unused)
