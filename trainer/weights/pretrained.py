"""What a run takes from the weights it starts from besides numbers: the architecture, and the vocabulary."""

import dataclasses

from trainer import storage
from trainer.models.architecture import EncoderConfig
from trainer.weights.description import FILE_NAME, load_description
from trainer.weights.opening import read_description


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """The architecture of weights, with changes; it is read when the run's directory is known.

    Attributes:
        weights: as for `trainer.weights.opening.open_weights`.
        changes: `{field of EncoderConfig: value}`.
    """

    weights: str
    changes: dict

    def resolve(self, run_directory):
        """Returns the `EncoderConfig`; arguments as in `description_for`."""
        return dataclasses.replace(description_for(self.weights, run_directory).encoder, **self.changes)


def pretrained_encoder(
    weights: str,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    confine_attention: bool | None = None,
    attention: str | None = None,
    hierarchical_alpha: float | None = None,
    condition_size: int | None = None,
    rematerialize: bool | None = None,
):
    """Takes the architecture from weights, so that no gin file has to repeat it.

    Args:
        weights: where they are, see `trainer.weights.opening.open_weights`.
        dropout, attention_dropout, confine_attention, attention, hierarchical_alpha, condition_size, rematerialize: see
            `EncoderConfig`; None for what the weights say.

    Returns:
        `PretrainedEncoder`.
    """
    changes = {
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "confine_attention": confine_attention,
        "attention": attention,
        "hierarchical_alpha": hierarchical_alpha,
        "condition_size": condition_size,
        "rematerialize": rematerialize,
    }
    return PretrainedEncoder(weights, {name: value for name, value in changes.items() if value is not None})


def encoder_for(encoder, run_directory):
    """Returns the `EncoderConfig` that a task was given, or that of the weights it was told to go by."""
    return encoder if isinstance(encoder, EncoderConfig) else encoder.resolve(run_directory)


def description_for(weights, run_directory):
    """Returns the `ModelDescription` of weights; of a run that goes on its own, so that it does not need them any more.

    Args:
        weights: see `trainer.weights.opening.open_weights`.
        run_directory: the `RunDirectory`.

    Raises:
        InputError: if there are no such weights.
    """
    own = storage.join(run_directory.path, FILE_NAME)
    if storage.exists(own) and storage.listing(run_directory.checkpoints_path):
        return load_description(run_directory.path)
    return read_description(weights)
