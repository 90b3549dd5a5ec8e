"""Writing weights in other formats: Hugging Face's folder, a TensorFlow 1 checkpoint, Keras, a checkpoint of ours."""

import functools

import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.errors import InputError
from trainer.models.encoder_with_heads import HEADS
from trainer.training.checkpoints import CheckpointManager
from trainer.weights import hugging_face, tensorflow1
from trainer.weights.keras_files import heads_in, model_of, write_keras
from trainer.weights.loading import listed, not_allowed
from trainer.weights.source import rows_of
from trainer.weights.tensors import write_checkpoint, write_safetensors
from trainer.weights.tokenizer_files import write_tokenizer

FORMATS = ("checkpoint", "hugging_face", "tensorflow1", "keras")
_MODEL_NAME = "converted"  # our names follow the model's in a checkpoint; when they are read, it does not matter


def write_weights(source, folder, kind, architecture=None, allow_unused=()):
    """Writes weights into a new folder.

    Args:
        source: `Weights`.
        folder: must not exist, or be empty.
        kind: `checkpoint`, `hugging_face`, `tensorflow1` or `keras`.
        architecture: the type of model to write for `hugging_face` and `tensorflow1`; None for the one that fits.
        allow_unused: regular expressions of the unknown tensors of the source that may be left out.

    Returns:
        our names of the tensors that the format has no place for, and that were left out.

    Raises:
        InputError: if the folder holds something, the source is not a whole model, or the format cannot hold it.
        StorageFailed: if writing fails.
    """
    if storage.listing(folder):
        raise InputError(f"{folder} is not empty: name another folder")
    check_whole(source, allow_unused)
    if kind == "hugging_face":
        return _write_hugging_face(source, folder, architecture)
    if kind == "tensorflow1":
        return _write_tensorflow1(source, folder, architecture)
    if architecture is not None:
        raise InputError(f"an architecture is chosen for other libraries' names, not for {kind!r}")
    if kind == "checkpoint":
        return _write_own(source, folder)
    if kind == "keras":
        return write_keras(source, folder)
    raise InputError(f"weights are written as {', '.join(FORMATS)}, not as {kind!r}")


def check_whole(source, allow_unused=()):
    """Refuses weights that are not what their description says: the encoder, and all of each head that is there.

    Args:
        source: `Weights`.
        allow_unused: regular expressions of unknown tensors that may be left out.

    Raises:
        InputError: naming everything that is missing, left over or of another shape.
    """
    shapes = _model_shapes(source.description, heads_in(source.names))
    known = [name for name in source.names if name.partition("/")[0] in ("encoder", *HEADS)]
    problems = [f"{name} is missing" for name in shapes if name not in source.names]
    problems += [f"{source.origin(name)} belongs to nothing in the model" for name in known if name not in shapes]
    for name in (name for name in known if name in shapes):
        if (shape := source.shape(name)) != shapes[name]:
            problems.append(f"{name} has shape {shape} where its model has {shapes[name]}")
    unknown = not_allowed(source.unknown, allow_unused, "allow_unused")
    problems += [f"{name} is unknown" for name in unknown]
    if problems:
        alone = len(unknown) == len(problems)  # else it may be what is missing, under another name
        advice = "\nLeave out what is of no use: --allow_unused REGEX." if alone else ""
        raise InputError(
            f"{source.path} ({source.kind}) is not the model of its description, nothing is written:\n"
            f"  {listed(problems)}{advice}"
        )


def _model_shapes(description, heads):
    """Returns `{our name: shape}` of all that a model has, without rows of padding."""
    with tf.Graph().as_default():  # in which variables take no memory
        variables = model_of(description, heads).trainable_variables
    shapes = {variable.path.partition("/")[2]: tuple(variable.shape) for variable in variables}
    size = description.vocabulary_size
    return {name: (size, *shape[1:]) if rows_of(name) == "tokens" else shape for name, shape in shapes.items()}


def _entries(scheme, source):
    """Returns the entries of a scheme that a source can fill, and our names of what the scheme has no place for."""
    classifies = "classifier/classifier/kernel" in source.names
    entries = [entry for entry in scheme.entries(source.description.encoder, classifies) if entry.name in source.names]
    named = {entry.name for entry in entries}
    left_out = [name for name in source.names if name not in named]
    if lost := [name for name in left_out if name.startswith("encoder/")]:
        raise InputError(f"the format has no place for {', '.join(lost)}")
    return entries, tuple(left_out)


def _write_hugging_face(source, folder, architecture):
    description = source.description
    kind = architecture or hugging_face.family(description, source.names)
    if kind not in hugging_face.SCHEMES:
        raise InputError(f"architecture {kind!r} is none of {', '.join(hugging_face.SCHEMES)}")
    hugging_face.check_family(kind, description, source.names)
    entries, left_out = _entries(hugging_face.SCHEMES[kind], source)
    tensors, last = [], {}

    def array_of(entry, number):
        if entry.name not in last:  # parts of one of ours follow one another: it is read once
            last.clear()
            last[entry.name] = np.asarray(source.read(entry.name), np.float32)
        return entry.write(number, last[entry.name])

    for entry in entries:
        shape = source.shape(entry.name)
        for number, part in enumerate(entry.parts):
            make = functools.partial(array_of, entry, number)
            tensors.append((part.name, np.float32, entry.written_shape(number, shape), make))
    tensors += [
        (name, np.float32, array.shape, lambda array=array: array)
        for name, array in hugging_face.buffers(kind, description.encoder).items()
    ]
    storage.make_folder(folder)
    write_safetensors(storage.join(folder, "model.safetensors"), tensors, {"format": "pt"})
    storage.write_json(
        storage.join(folder, "config.json"),
        hugging_face.json_config(kind, description, [entry.name for entry in entries]),
    )
    write_tokenizer(description, folder)
    return left_out


def _write_tensorflow1(source, folder, architecture):
    description = source.description
    hugging_face.refuse_ours(description.encoder)
    kind = architecture or tensorflow1.family(description, source.names)
    if kind not in tensorflow1.SCHEMES:
        raise InputError(f"architecture {kind!r} is none of {', '.join(tensorflow1.SCHEMES)}")
    entries, left_out = _entries(tensorflow1.SCHEMES[kind], source)
    tensors = {}
    with tf.device("CPU:0"):
        for entry in entries:
            array = np.asarray(source.read(entry.name), np.float32)
            for number, part in enumerate(entry.parts):
                tensors[part.name] = tf.constant(entry.write(number, array))
    content = tensorflow1.json_config(kind, description)
    back = tensorflow1.encoder_config({name: tuple(tensor.shape) for name, tensor in tensors.items()}, content)
    tensorflow1.check_same(kind, description, back, source.names)
    storage.make_folder(folder)
    write_checkpoint(storage.join(folder, "bert_model.ckpt"), tensors)
    storage.write_json(storage.join(folder, "bert_config.json"), content)
    write_tokenizer(description, folder)
    return left_out


class _UnreadVariable:
    """Stands for a variable when a checkpoint is written; its value is read then, and not held any longer."""

    def __init__(self, source, name):
        self._source, self._name = source, name

    @property
    def value(self):
        """What a Keras variable has a TensorFlow one in."""
        return self

    def read_value(self):
        """Returns the value as a tensor."""
        with tf.device("CPU:0"):
            return tf.constant(self._source.read_padded(self._name), tf.float32)


def _write_own(source, folder):
    variables = {f"{_MODEL_NAME}/{name}": _UnreadVariable(source, name) for name in source.names}
    storage.make_folder(folder)
    source.description.save(folder)
    checkpoints = storage.join(folder, "checkpoints")
    metadata = {"vocabulary": None}
    CheckpointManager(checkpoints, {"weights": variables}, asynchronous=False, metadata=metadata).save(0, wait=True)
    return ()
