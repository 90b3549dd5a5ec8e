"""What must be known of a model besides its weights: architecture, vocabulary, classes. A run keeps it in `model.json`."""

import dataclasses

from trainer import storage
from trainer.data.vocabulary import SPECIAL_TOKENS, file_content
from trainer.errors import InputError
from trainer.models.architecture import EncoderConfig

FILE_NAME = "model.json"
VOCABULARY_NAME = "vocab.txt"
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
        tokenizer_files: paths of files that belong to another kind of tokenizer, and travel along.
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
        """Writes `model.json`, and `vocab.txt` where there are pieces."""
        content = {
            "format": _FORMAT,
            "encoder": dataclasses.asdict(self.encoder),
            "vocabulary_size": self.vocabulary_size,
            "lower_case": self.lower_case,
            "labels": list(self.labels),
            "objective": self.objective,
            "pooling": self.pooling,
        }
        if self.pieces is not None:
            storage.write_bytes(storage.join(folder, VOCABULARY_NAME), file_content(self.pieces))
        storage.write_json(storage.join(folder, FILE_NAME), content)


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
    return {name: pair for name, pair in pairs.items() if name not in free and pair[0] != pair[1]}


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
    pieces = read_pieces(storage.join(folder, VOCABULARY_NAME))
    return ModelDescription(encoder=encoder, pieces=pieces, **fields)


def read_pieces(path):
    """Returns the pieces of a vocabulary file, one a line; None if there is no such file."""
    if not storage.exists(path):
        return None
    lines = storage.read_text(path).split("\n")
    return tuple(line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines))


def looks_lower_cased(pieces):
    """Returns whether a vocabulary is of lower-cased text: hardly any piece has a capital letter."""
    with_capitals = sum(piece != piece.lower() for piece in pieces if piece not in SPECIAL_TOKENS)
    return with_capitals < 0.01 * len(pieces)
