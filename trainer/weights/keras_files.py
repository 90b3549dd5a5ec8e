"""Keras's files: `.keras`, and `.weights.h5` beside a `model.json`."""

import os
import shutil
import tempfile
import zipfile

import keras
import numpy as np

from trainer import storage
from trainer.errors import InputError
from trainer.models.encoder import Encoder
from trainer.models.encoder_with_heads import HEADS, EncoderWithHeads
from trainer.models.heads import ClassifierHead, MaskedLanguageModelHead, Pooler, ReplacedTokenHead
from trainer.weights.description import FILE_NAME, ModelDescription, load_description
from trainer.weights.entries import Entry, Part
from trainer.weights.source import WeightSource, rows_of
from trainer.weights.tensors import Tensors
from trainer.weights.tokenizer_files import other_tokenizer_files

_NAME = "model.keras"
# Where Keras keeps the heads of an `EncoderWithHeads` in HDF5: what comes after `layers` by name lies in that.
_H5_GROUPS = {
    "masked_language_model": ("masked_language_model", "layers/masked_language_model_head"),
    "pooler": ("pooler/dense", "layers/pooler/dense"),
    "sentence_pair": ("sentence_pair", "layers/classifier_head"),
    "classifier": ("classifier",),
    "replaced_token_detection": ("replaced_token_detection", "layers/replaced_token_head"),
}
_PARTS = (Encoder, MaskedLanguageModelHead, Pooler, ClassifierHead, ReplacedTokenHead)


class _Variables(Tensors):
    """The variables of a Keras model, by our names."""

    def __init__(self, variables):
        self._variables = variables
        self.shapes = {name: tuple(variable.shape) for name, variable in variables.items()}

    def read(self, name):
        return np.asarray(self._variables[name])


def open_keras(path):
    """Opens the weights in a Keras file with one `Encoder` in it, whatever else of Keras the model is made of.

    Args:
        path: of a `.keras` file, or of a `.weights.h5` file beside the `model.json` of the `EncoderWithHeads` it is of.

    Returns:
        `WeightSource`.

    Raises:
        InputError: if it is not there, damaged, has no encoder of ours or several, or several heads of a name.
    """
    if not storage.exists(path):
        raise InputError(f"there is no file {path}")
    with tempfile.TemporaryDirectory(prefix="keras-") as folder:
        local = path
        if storage.is_remote(path):
            local = os.path.join(folder, path.rpartition("/")[2])
            storage.copy_file(path, local)
        model = _load_whole(path, local) if path.endswith(".keras") else _load_weights(path, local)
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, _PARTS)]
    encoders = [layer for layer in layers if isinstance(layer, Encoder)]
    if len(encoders) != 1:
        raise InputError(
            f"{path} has {len(encoders)} encoders of this library in it; weights are taken from exactly one"
        )
    (encoder,) = encoders
    heads = [layer for layer in layers if layer is not encoder]
    parts = {layer.name: layer for layer in heads}
    if len(parts) != len(heads):
        names = [layer.name for layer in heads]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"{path} has several heads called {', '.join(twice)}: give them different names")
    variables = _by_our_names({"encoder": encoder} | parts)
    entries = {name: Entry(name, (Part(name),), rows_of(name)) for name in variables}
    return WeightSource("Keras", path, _description(path, model, encoder, parts), entries, _Variables(variables))


def _load_whole(path, local):
    try:
        return keras.saving.load_model(local, compile=False)
    except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be loaded by Keras: {error}") from None


def _load_weights(path, local):
    folder = path.rpartition("/")[0] or "."
    if not storage.exists(storage.join(folder, FILE_NAME)):
        raise InputError(
            f"{path} holds numbers alone: {FILE_NAME}, which says what model they are of, must lie beside it"
        )
    description = load_description(folder)
    import h5py

    try:
        with h5py.File(local, "r") as file:
            heads = [name for name in HEADS if any(place in file for place in _H5_GROUPS[name])]
    except OSError as error:
        raise InputError(f"{path} is damaged, or no HDF5 file: {error}") from None
    model = model_of(description, heads)
    try:
        model.load_weights(local)
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{path} does not fit {FILE_NAME} beside it: {error}") from None
    return model


def _by_our_names(parts):
    """Returns `{our name: variable}` of layers `{our name: layer}`; a layer's own name begins the path behind it."""
    variables = {}
    for ours, layer in parts.items():
        for variable in layer.trainable_variables + layer.non_trainable_variables:
            _, found, rest = f"/{variable.path}".partition(f"/{layer.name}/")
            if found and not rest.startswith("seed_generator"):
                variables[f"{ours}/{rest}"] = variable
    return variables


def _description(path, model, encoder, parts):
    fields = {}
    if isinstance(model, EncoderWithHeads):
        fields = {name: getattr(model, name) for name in ("labels", "objective", "pieces", "lower_case")}
        fields["pooling"] = model.pooling if model.classifier is not None else None
    elif poolers := [layer for layer in parts.values() if isinstance(layer, Pooler)]:
        fields["pooling"] = poolers[0].pooling
    files = () if fields.get("pieces") else other_tokenizer_files(path.rpartition("/")[0] or ".")
    return ModelDescription(
        encoder=encoder.config, vocabulary_size=encoder.vocabulary_size, tokenizer_files=files, **fields
    )


def model_of(description, heads):
    """Returns the built `EncoderWithHeads` of a `ModelDescription`, with the heads of some names."""
    model = EncoderWithHeads(
        description.encoder,
        description.vocabulary_size,
        heads,
        labels=description.labels,
        pooling=description.pooling or "cls",
        objective=description.objective,
        pieces=description.pieces,
        lower_case=description.lower_case,
    )
    model.build()
    return model


def heads_in(names):
    """Returns which of `HEADS` our names of tensors belong to, in that order."""
    has = {name.partition("/")[0] for name in names}
    return [name for name in HEADS if name in has]


def write_keras(source, folder):
    """Writes `model.keras`, an `EncoderWithHeads`, and `model.json` into a folder.

    Args:
        source: `Weights`, all that its model has.
        folder: an empty or new one.

    Returns:
        our names of tensors that were left out: those of heads that the model does not know.
    """
    heads = heads_in(source.names)
    model = model_of(source.description, heads)
    variables = _by_our_names({"encoder": model.encoder} | {name: getattr(model, name) for name in heads})
    for name, variable in variables.items():
        variable.assign(source.read_padded(name).astype(np.float32, copy=False))
    storage.make_folder(folder)
    source.description.save(folder)
    with tempfile.TemporaryDirectory(prefix="keras-") as temporary:
        local = os.path.join(temporary, _NAME)
        model.save(local)
        with open(local, "rb") as file, storage.atomic_writer(storage.join(folder, _NAME)) as target:
            shutil.copyfileobj(file, target, 16 << 20)
    return tuple(name for name in source.names if name not in variables)
