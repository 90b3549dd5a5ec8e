"""Changing the vocabulary, the positions or the layers of weights before they are loaded or written.

Rows of the word embeddings and of the output bias move together. As in bert4keras, a compound token's row is the mean of
the rows of its pieces.
"""

import dataclasses
import itertools

import numpy as np

from trainer.data.tokenization import Tokenizer
from trainer.data.vocabulary import SPECIAL_TOKENS, UNKNOWN, make_vocabulary
from trainer.errors import InputError
from trainer.weights.source import Weights, rows_of
from trainer.weights.tokenizer_files import looks_lower_cased

_EMBEDDINGS = "encoder/embeddings/word_embeddings/embeddings"
_POSITIONS = "encoder/embeddings/position_embeddings/embeddings"
_ALPHA = 0.4  # what the post on hierarchical positions takes


class _Changed(Weights):
    """Weights some of whose tensors are changed when they are read.

    Args:
        source: `Weights`.
        description: the `ModelDescription` after the change.
    """

    def __init__(self, source, description):
        self._source, self.description = source, description
        self.kind, self.path, self.names = source.kind, source.path, source.names
        self.unknown, self.ignored = source.unknown, source.ignored

    def origin(self, name):
        """See `Weights.origin`."""
        return self._source.origin(name)

    def shape(self, name):
        """See `Weights.shape`."""
        return self._source.shape(name)

    def read(self, name):
        """See `Weights.read`."""
        return self._source.read(name)


class _ChangedTokens(_Changed):
    """A source with other tokens: each row is a weighted sum of old rows, or new."""

    def __init__(self, source, description, mixtures, seed):
        super().__init__(source, description)
        self._mixtures, self._seed = mixtures, seed

    def shape(self, name):
        shape = self._source.shape(name)
        return (len(self._mixtures), *shape[1:]) if rows_of(name) == "tokens" else shape

    def read(self, name):
        array = self._source.read(name)
        if rows_of(name) != "tokens":
            return array
        array = array.astype(np.float32, copy=False)  # sums of half-precision numbers would lose much
        result = np.zeros((len(self._mixtures), *array.shape[1:]), np.float32)
        single = np.array([ids[0] if len(ids) == 1 else -1 for ids, _ in self._mixtures])
        result[single >= 0] = array[single[single >= 0]]
        for row, (ids, weights) in enumerate(self._mixtures):
            if len(ids) > 1:
                weights = np.full(len(ids), 1 / len(ids)) if weights is None else np.asarray(weights) / np.sum(weights)
                result[row] = np.tensordot(weights, array[list(ids)].astype(np.float64), 1)
        new = np.array([not ids for ids, _ in self._mixtures])
        if name == _EMBEDDINGS and new.any():  # of the spread of the rows that are there, so that nothing stands out
            rng = np.random.default_rng(self._seed)
            drawn = rng.standard_normal((new.sum(), *array.shape[1:]))
            result[new] = array.mean(axis=0) + np.clip(drawn, -2, 2) * array.std(axis=0)
        return result


def _changed(source, pieces, mixtures, seed=0, **fields):
    encoder = source.description.encoder
    padding = next((place for place, (ids, _) in enumerate(mixtures) if ids == (encoder.padding_id,)), None)
    if padding is None:
        raise InputError(f"the token of id {encoder.padding_id} must stay: it is padding (encoder.padding_id)")
    fields |= {"encoder": dataclasses.replace(encoder, padding_id=padding), "pieces": pieces}
    description = dataclasses.replace(source.description, vocabulary_size=len(mixtures), **fields)
    return _ChangedTokens(source, description, mixtures, seed)


def keep_tokens(source, ids, compounds=()):
    """Keeps some tokens and adds compound ones, as bert4keras's `keep_tokens` and `compound_tokens`.

    Args:
        source: `Weights`.
        ids: old ids of the tokens to keep, in their new order; the new id is the place. None for all.
        compounds: for each token to append, the ids whose mean it begins as, or (ids, weights). They are new ids, as in
            bert4keras: places in `ids`.

    Returns:
        a source with the changed vocabulary; without the files of a tokenizer whose ids no longer hold.

    Raises:
        InputError: if an id is not there or kept twice, padding or another special token is not kept, or `[PAD]` does not
            stay at 0.
    """
    ids = range(source.description.vocabulary_size) if ids is None else ids
    kept = [_token_id(number, source.description.vocabulary_size, source.path) for number in ids]
    if len(set(kept)) != len(kept):
        raise InputError("a token id is kept twice")
    mixtures = [((number,), None) for number in kept]
    for compound in compounds:
        places, weights = _ids_and_weights(compound)
        places = [_token_id(place, len(kept), "what is kept") for place in places]
        mixtures.append((tuple(kept[place] for place in places), weights))
    if source.description.pieces is None:
        ids_hold = kept == [*range(source.description.vocabulary_size)]
        return _changed(source, None, mixtures, tokenizer_files=source.description.tokenizer_files if ids_hold else ())
    pieces = _all_pieces(source.description)
    if kept[:1] != [0]:
        raise InputError(f"the first token to keep must be {pieces[0]} with id 0: 0 is padding everywhere here")
    names = ["".join(pieces[number].removeprefix("##") for number in numbers) for numbers, _ in mixtures[len(kept) :]]
    taken = [pieces[number] for number in kept]
    if lost := [piece for piece in SPECIAL_TOKENS if piece in pieces and piece not in taken]:
        ids = ", ".join(f"{piece} (id {pieces.index(piece)})" for piece in lost)
        raise InputError(f"special tokens must be kept; the list lacks {ids}")
    if twice := [name for place, name in enumerate(names) if name in taken or name in names[:place]]:
        raise InputError(f"the compound token {twice[0]!r} is in the vocabulary already")
    return _changed(source, (*taken, *names), mixtures, tokenizer_files=())


def _ids_and_weights(compound):
    """Returns the ids and the weights of a compound token, None for equal ones; raises InputError if it is none."""
    try:
        weighted = len(compound) == 2 and not np.isscalar(compound[0])
        ids, weights = compound if weighted else (compound, None)
        numbers = np.ones(len(ids)) if weights is None else np.asarray(weights, np.float64)
        if len(ids) and numbers.shape == (len(ids),) and abs(numbers.sum()) > 1e-6 * np.abs(numbers).sum():
            return ids, weights
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"a compound token is a list of ids, or (ids, as many weights, whose sum is not 0); not {compound!r}"
    )


def _token_id(number, size, what):
    """Returns a token id as an integer; raises InputError if it is none below the size."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < size:
        raise InputError(f"there is no token id {number!r}: {what} has {size:,} tokens")
    return int(number)


def _all_pieces(description):
    """Returns the pieces of a description, and names for tokens of its that the vocabulary does not name."""
    pieces = description.pieces
    return (*pieces, *_unused_names(pieces, description.vocabulary_size - len(pieces)))


def _unused_names(pieces, count):
    """Returns as many names `[unusedN]` that are not among the pieces."""
    taken = set(pieces)
    names = (name for number in itertools.count() if (name := f"[unused{number}]") not in taken)
    return tuple(itertools.islice(names, count))


def change_vocabulary(source, pieces, seed=0):
    """Goes over to another vocabulary.

    A piece that the old vocabulary has keeps its row. Another begins as the mean of the old pieces that its text is split
    into; where they are unknown (`[UNK]`), and for new special tokens, it begins at random with the spread of the others.

    Args:
        source: `Weights` with a WordPiece vocabulary.
        pieces: of the new vocabulary, in the order of their ids.
        seed: of the random rows.

    Returns:
        (source, counts): the changed source, and how many pieces were `kept`, `composed` and `new`.

    Raises:
        InputError: if the source has no vocabulary, or one without `[UNK]`.
    """
    old = source.description.pieces
    if old is not None and UNKNOWN not in old:
        raise InputError(f"the vocabulary of {source.path} lacks {UNKNOWN}: it is not BERT's")
    if old is None:
        raise InputError(f"{source.path} has no WordPiece vocabulary beside it: what its ids mean is not known")
    ids = {piece: number for number, piece in enumerate(old)}
    unknown = ids.get(UNKNOWN)
    tokenizer = Tokenizer(make_vocabulary(old), lower_case=source.description.lower_case is True)
    others = [piece for piece in pieces if piece not in ids]
    numbers, lengths = tokenizer.tokenize([_text_of(piece) for piece in others])
    split = dict(zip(others, np.split(numbers, np.cumsum(lengths)[:-1]) if others else [], strict=True))
    mixtures, counts = [], {"kept": 0, "composed": 0, "new": 0}
    for piece in pieces:
        if piece in ids:
            mixtures.append(((ids[piece],), None))
            counts["kept"] += 1
            continue
        parts = tuple(int(number) for number in split[piece])
        usable = parts and unknown not in parts and not _is_special(piece)
        counts["composed" if usable else "new"] += 1
        mixtures.append((parts if usable else (), None))
    lower_case = looks_lower_cased(pieces)
    return _changed(source, tuple(pieces), mixtures, seed, lower_case=lower_case, tokenizer_files=()), counts


def _is_special(piece):
    return piece in SPECIAL_TOKENS or (piece.startswith("[") and piece.endswith("]") and len(piece) > 2)


def _text_of(piece):
    return piece.removeprefix("##") if len(piece) > 2 else piece


def grow_vocabulary(source, size, seed=0):
    """Adds tokens at the end; they begin at random with the spread of the others, and are called `[unused_N]`.

    Args:
        source: `Weights`.
        size: number of tokens after it.
        seed: of the random rows.

    Raises:
        InputError: if there are more tokens already.
    """
    old = source.description.vocabulary_size
    if size < old:
        raise InputError(f"{source.path} has {old:,} tokens: {size:,} are fewer (keep_tokens takes some away)")
    pieces = source.description.pieces
    if pieces is not None:
        pieces = (*pieces, *_unused_names(pieces, size - len(pieces)))
    mixtures = [((number,), None) for number in range(old)] + [((), None)] * (size - old)
    return _changed(source, pieces, mixtures, seed)


class _ChangedPositions(_Changed):
    """A source with more or fewer learned positions."""

    def __init__(self, source, description, method, alpha):
        super().__init__(source, description)
        self._method, self._alpha = method, alpha

    def shape(self, name):
        shape = self._source.shape(name)
        return (self.description.encoder.max_length, *shape[1:]) if name == _POSITIONS else shape

    def read(self, name):
        array = self._source.read(name)
        if name != _POSITIONS:
            return array
        length, rows = self.description.encoder.max_length, len(array)
        places = np.arange(length)
        if self._method == "repeat" or length <= rows:
            return array[places % rows]
        # The hierarchical decomposition, written out: the first rows stay as they are.
        table = array.astype(np.float64)
        outer = (table - self._alpha * table[:1]) / (1 - self._alpha)
        combined = self._alpha * outer[places // rows] + (1 - self._alpha) * outer[places % rows]
        combined[:rows] = table
        return combined.astype(array.dtype)


def change_positions(source, length, method="hierarchical", alpha=None):
    """Extends or cuts learned positions.

    Args:
        source: `Weights` of a model with learned positions.
        length: number of positions after it.
        method: for those beyond the old ones: `repeat` starts over (as Longformer did), `hierarchical` combines two old
            ones (Su 2020, kexue.fm/archives/7947), up to the square of their number.
        alpha: share of the outer position in `hierarchical`; None for the architecture's own, or 0.4.

    Raises:
        InputError: if the model has no learned positions, or they do not reach.
    """
    config = source.description.encoder
    if config.positions != "learned":
        raise InputError(
            f"{source.path} has {config.positions} positions, which need no extension: set encoder.max_length"
        )
    if (rows := source.shape(_POSITIONS)[0]) != config.max_length:
        raise InputError(f"{source.path} has {rows:,} positions where its configuration says {config.max_length:,}")
    if length < 1:
        raise InputError(f"there must be at least 1 position, not {length}")
    if method not in ("repeat", "hierarchical"):
        raise InputError(f"positions are extended by repeat or hierarchical, not by {method!r}")
    if method == "hierarchical" and length > config.max_length**2:
        raise InputError(
            f"{config.max_length} positions combine to {config.max_length**2:,} at most; {length:,} were asked for"
        )
    alpha = alpha or config.hierarchical_alpha or _ALPHA
    encoder = dataclasses.replace(config, max_length=length, hierarchical_alpha=None)
    return _ChangedPositions(source, dataclasses.replace(source.description, encoder=encoder), method, alpha)


class _Unshared(_Changed):
    """A source whose one layer stands for all."""

    def __init__(self, source, description):
        super().__init__(source, description)
        shared = [name for name in source.names if name.startswith("encoder/layer_0/")]
        self._origins = {name: name for name in source.names if name not in shared}
        for layer in range(description.encoder.num_layers):
            self._origins |= {name.replace("layer_0", f"layer_{layer}", 1): name for name in shared}
        self.names = tuple(self._origins)

    def origin(self, name):
        return self._source.origin(self._origins[name])

    def shape(self, name):
        return self._source.shape(self._origins[name])

    def read(self, name):
        return self._source.read(self._origins[name])


def unshare_layers(source):
    """Gives each layer its own copy of the one that all share (ALBERT), as bert4keras's `albert_unshared`.

    Args:
        source: `Weights` of a model with shared layers.

    Raises:
        InputError: if it shares none.
    """
    if not source.description.encoder.share_layers:
        raise InputError(f"{source.path} has no shared layers")
    encoder = dataclasses.replace(source.description.encoder, share_layers=False)
    return _Unshared(source, dataclasses.replace(source.description, encoder=encoder))
