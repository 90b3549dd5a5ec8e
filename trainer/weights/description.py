"""What must be known of a model besides its weights: architecture, vocabulary, classes. A run keeps it in `model.json`."""

import dataclasses

from trainer import storage
from trainer.errors import InputError
from trainer.models.architecture import EncoderConfig
from trainer.weights.tokenizer_files import VOCABULARY_NAME, other_tokenizer_files, read_pieces, write_vocabulary

FILE_NAME = "model.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model without its numbers.

    Attributes:
        encoder: `EncoderConfig`.
        vocabulary_size: number of token ids.
        pieces: the pieces of a WordPiece vocabulary, in the order of their ids; None if there is none.
        lower_case: whether texts are lower-cased; None if nobody says.
        labels: names of the classes of a classifier.
        objective: what a classifier was trained for: `single_label`, `multi_label` or `regression`; None without one.
        pooling: of a classifier, see `trainer.models.heads.Pooler`; None without one.
        tokenizer_files: paths of the files of a tokenizer that is not BERT's; they travel along. Empty if there are pieces.
    """

    encoder: EncoderConfig
    vocabulary_size: int
    pieces: tuple | None = None
    lower_case: bool | None = None
    labels: tuple = ()
    objective: str | None = None
    pooling: str | None = None
    tokenizer_files: tuple = ()

    def save(self, folder):
        """Writes `model.json`, and beside it the vocabulary or tokenizer."""
        content = {
            "format": _FORMAT,
            "encoder": dataclasses.asdict(self.encoder),
            "vocabulary_size": self.vocabulary_size,
            "lower_case": self.lower_case,
            "labels": list(self.labels),
            "objective": self.objective,
            "pooling": self.pooling,
            "word_pieces": self.pieces is not None,
        }
        write_vocabulary(self, folder)
        storage.write_json(storage.join(folder, FILE_NAME), content)


def nameless_labels(count):
    """Returns what so many classes are called that nobody gave a name."""
    return tuple(f"LABEL_{number}" for number in range(count))


def differing_fields(ours, theirs, free=()):
    """Returns `{field: (our value, their value)}` of what two architectures compute otherwise.

    Args:
        ours, theirs: `EncoderConfig`.
        free: names of fields that may differ.
    """

    def values(config):
        sizes = {"intermediate_size": config.feed_forward_size, "embedding_size": config.token_size}
        return dataclasses.asdict(config) | sizes

    pairs = {name: (value, values(theirs)[name]) for name, value in values(ours).items()}
    free = {*free} | (_idle_fields(ours) & _idle_fields(theirs))
    return {name: pair for name, pair in pairs.items() if name not in free and pair[0] != pair[1]}


def _idle_fields(config):
    """Returns the names of fields that other fields of an architecture leave without a meaning."""
    idle = set()
    if config.positions != "learned":
        idle |= {"max_length", "hierarchical_alpha"}
    if config.positions != "relative":
        idle.add("max_relative_distance")
    if config.positions != "rotary":
        idle |= {"rotary_base", "local_rotary_base"}
    if not any(config.is_local(layer) for layer in range(config.num_layers)):
        idle |= {"attention_window", "global_every", "local_rotary_base"}
    if config.normalization == "rms":
        idle.add("norm_bias")
    return idle


def load_description(folder):
    """Reads what `ModelDescription.save` wrote.

    Raises:
        InputError: if it is damaged, or of a later version.
    """
    path = storage.join(folder, FILE_NAME)
    try:
        content = storage.read_json(path)
        if content["format"] != _FORMAT:
            raise InputError(f"{path} has format {content['format']}, this version reads {_FORMAT}")
        encoder = EncoderConfig(**content["encoder"])
        names = ("vocabulary_size", "lower_case", "objective", "pooling")
        fields = {name: content[name] for name in names} | {"labels": tuple(content["labels"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    pieces = read_pieces(storage.join(folder, VOCABULARY_NAME)) if content.get("word_pieces", True) else None
    files = other_tokenizer_files(folder) if pieces is None else ()
    return ModelDescription(encoder=encoder, pieces=pieces, tokenizer_files=files, **fields)
