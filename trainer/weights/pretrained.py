"""What a run takes from the weights it starts from besides numbers: the architecture, and the vocabulary."""

import dataclasses

from trainer import storage
from trainer.data.tokenizer_file import FILE_NAME, FileVocabulary, load_file_vocabulary
from trainer.data.vocabulary import make_vocabulary
from trainer.errors import InputError
from trainer.models.architecture import EncoderConfig
from trainer.weights import description as descriptions
from trainer.weights.opening import read_description
from trainer.weights.tokenizer_files import other_tokenizer_files


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """The architecture of weights, with changes; it is read when the run's directory is known.

    Attributes:
        weights: as for `trainer.weights.opening.open_weights`.
        changes: `{field of EncoderConfig: value}`.
    """

    weights: str
    changes: dict

    def resolve(self, description):
        """Returns the `EncoderConfig`, of the `ModelDescription` of the weights."""
        return dataclasses.replace(description.encoder, **self.changes)


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


def vocabulary_of(description):
    """Returns the `Vocabulary` that travels with weights.

    Args:
        description: `ModelDescription`.

    Raises:
        InputError: if there is none that is known here.
    """
    if description.pieces is not None:
        return make_vocabulary(description.pieces)
    for path in description.tokenizer_files:
        if path.endswith(f"/{FILE_NAME}"):
            return load_file_vocabulary(path)
    raise InputError(
        "beside the initial weights there is neither BERT's vocab.txt nor a tokenizer.json: give the vocabulary that they "
        "were trained with"
    )


def tokenizer_fields(vocabulary):
    """Returns the fields of `ModelDescription` that say how texts become ids: `pieces`, or `tokenizer_files`."""
    if isinstance(vocabulary, FileVocabulary):
        return {"tokenizer_files": other_tokenizer_files(vocabulary.path.rpartition("/")[0] or ".")}
    return {"pieces": vocabulary.pieces}


def encoder_for(encoder, description):
    """Returns the `EncoderConfig` that a task was given, or that of the weights it was told to go by.

    Args:
        encoder: `EncoderConfig` or `PretrainedEncoder`.
        description: what `description_for` returned.
    """
    return encoder if description is None else encoder.resolve(description)


def description_for(encoder, run_directory):
    """Returns the `ModelDescription` of the weights that an encoder is taken from, None if it is not.

    Of a run that goes on it is the run's own, so that it does not need the weights any more.

    Args:
        encoder: `EncoderConfig` or `PretrainedEncoder`.
        run_directory: the `RunDirectory`.

    Raises:
        InputError: if there are no such weights.
    """
    if isinstance(encoder, EncoderConfig):
        return None
    return own_description(run_directory) or read_description(encoder.weights)


def own_description(run_directory):
    """Returns the `ModelDescription` of a run that has trained already; None before, or outside of any run."""
    if run_directory is None:
        return None
    described = storage.exists(storage.join(run_directory.path, descriptions.FILE_NAME))
    if described and storage.listing(run_directory.checkpoints_path):
        return descriptions.load_description(run_directory.path)
    return None
