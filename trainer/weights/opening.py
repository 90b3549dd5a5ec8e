"""Opening weights, whatever they are: what kind, which architecture, which of our tensors they hold."""

import dataclasses
import re

from trainer import storage
from trainer.errors import InputError
from trainer.models.encoder import padded_vocabulary_size
from trainer.weights import hugging_face, tensorflow1
from trainer.weights.description import ModelDescription, nameless_labels
from trainer.weights.keras_files import open_keras
from trainer.weights.own_checkpoint import describe_checkpoint, open_checkpoint
from trainer.weights.source import WeightSource
from trainer.weights.tensors import CheckpointTensors, SafetensorsFiles, TorchFiles, is_hdf5
from trainer.weights.tokenizer_files import read_json, read_tokenizer

_NUMBERS = ("float16", "bfloat16", "float32", "float64")
_SAFETENSORS, _TORCH = "model.safetensors", "pytorch_model.bin"


def open_weights(path, config=None):
    """Finds out what weights are, and opens them.

    Args:
        path: a run directory or checkpoint of this trainer; a folder of Hugging Face's with `config.json`; a TensorFlow 1
            checkpoint or its folder, with its configuration; a `.keras` file, or `.weights.h5` beside a `model.json`.
        config: path of the configuration, where it does not lie beside the weights.

    Returns:
        `WeightSource`.

    Raises:
        InputError: if there is nothing there that we know, or it is damaged; says what is missing.
    """
    path, config = _plain(path), None if config is None else _plain(config)
    if path.endswith((".keras", ".weights.h5")):
        return open_keras(path)
    if own := open_checkpoint(path):
        return own
    folder, file = _folder_and_file(path)
    if file is not None and storage.exists(path) and is_hdf5(path):
        raise InputError(
            f"{path} is HDF5, as Keras 2 and bert4keras save weights: only their program knows which is which. Save them "
            "there by model.save_weights_as_checkpoint('bert_model.ckpt') of bert4keras, and give that"
        )
    names = storage.listing(folder)
    if found := _safetensors_or_torch(folder, file, names):
        return _hugging_face(path, folder, config, found)
    if (prefix := _checkpoint_prefix(folder, file, names, path)) is not None:
        return _tensorflow1(path, folder, config, prefix)
    if (keras_files := [name for name in names if name.endswith(".keras")]) and len(keras_files) == 1:
        return open_keras(storage.join(folder, keras_files[0]))
    if not storage.exists(path):
        raise InputError(f"there are no weights at {path}: no such file or folder")
    raise InputError(
        f"{path} holds no weights that are known here: neither checkpoints of this trainer, nor {_SAFETENSORS} or {_TORCH} "
        f"with config.json, nor a TensorFlow checkpoint (.index), nor .keras; it holds {', '.join(names[:8]) or 'nothing'}"
    )


def read_description(path, config=None):
    """Returns the `ModelDescription` of weights, reading no more than that takes; arguments and errors as `open_weights`."""
    return describe_checkpoint(_plain(path)) or open_weights(path, config).description


def _plain(path):
    """Returns a path as text, without what says that it is local and without slashes at its end."""
    return str(path).removeprefix("file://").rstrip("/")


def _folder_and_file(path):
    """Returns the folder of a path, and the file's name where it is not a folder itself."""
    if storage.is_folder(path):
        return path, None
    folder, _, file = path.rpartition("/")
    return folder or ".", file


def _read_config(folder, config, keys):
    """Returns the content of the configuration beside weights: the one file that has the keys."""
    if config is not None:
        if not storage.exists(config) or storage.is_folder(config):
            raise InputError(f"there is no configuration {config}")
        return read_json(config)
    names = [name for name in storage.listing(folder) if name.endswith(".json")]
    for name in sorted(names, key=lambda name: (name != "config.json", name)):
        try:
            content = read_json(storage.join(folder, name))
        except InputError:
            if name in ("config.json", "bert_config.json"):
                raise
            continue  # not ours to judge
        if any(key in content for key in keys):
            return content
    raise InputError(f"{folder} has no configuration (config.json, bert_config.json) beside the weights: give one")


def _safetensors_or_torch(folder, file, names):
    """Returns the paths of Hugging Face's weights in a folder, safetensors before others; empty if there are none."""
    if file is not None:
        return [storage.join(folder, file)] if file.endswith((".safetensors", ".bin", ".pt")) else []
    for name in (_SAFETENSORS, _TORCH):
        if name in names:
            return [storage.join(folder, name)]
        if f"{name}.index.json" in names:
            path = storage.join(folder, f"{name}.index.json")
            places = read_json(path).get("weight_map")
            if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
                raise InputError(f"{path} is damaged: it has no weight_map of names of files")
            return [storage.join(folder, part) for part in sorted(set(places.values()))]
    others = [name for name in names if name.endswith(".safetensors")]
    return [storage.join(folder, others[0])] if len(others) == 1 else []


def _hugging_face(path, folder, config, files):
    if missing := [file for file in files if not storage.exists(file)]:
        raise InputError(f"there is no file {', '.join(missing)}")
    content = _read_config(folder, config, ("model_type", "hidden_size", "dim"))
    tensors = (SafetensorsFiles if files[0].endswith(".safetensors") else TorchFiles)(files)
    content = hugging_face.with_model_type(content, tensors.shapes)
    encoder = hugging_face.encoder_config(content)
    scheme = hugging_face.scheme_of(content)
    actual = _actual_names(tensors.shapes, scheme)
    classifies = hugging_face.may_classify(content) and scheme.classifier is not None
    classifies = classifies and actual(f"{scheme.classifier}.weight") is not None
    entries = _present(scheme.entries(encoder, classifies), actual)
    if encoder.prediction_bias and "masked_language_model/output_bias" not in entries:
        entries = _without(entries, "masked_language_model")  # ModernBERT's classifiers have layers of these names, too
    if not classifies or "pooler/pooler/kernel" not in entries:
        entries = _without(entries, "classifier")  # what classifies every token goes by the same name
    hugging_face.check_token_head(hugging_face.model_type_of(content), encoder, entries)
    _check_types(path, entries, tensors)
    classifier = {}
    if "classifier/classifier/kernel" in entries:
        count = entries["classifier/classifier/kernel"].shape(tensors.shapes)[-1]
        labels, objective = hugging_face.classes(content, count)
        classifier = {"labels": labels, "objective": objective, "pooling": "cls"}
    size = _vocabulary_size(path, entries, tensors, content.get("vocab_size"))
    description = _description(folder, encoder=encoder, vocabulary_size=size, **classifier)
    others = _others(entries, tensors, lambda name: hugging_face.ignored(name, content))
    kind = f"Hugging Face, {hugging_face.model_type_of(content)}"
    return WeightSource(kind, path, description, entries, tensors, *others)


def _actual_names(shapes, scheme):
    """Returns a function from the names of a scheme to those in a file, or None where there is none.

    A bare encoder's names lack the base; old files call the vectors of normalisations gamma and beta; some biases of the
    output are kept with its projection.
    """
    bare = not any(name.startswith(scheme.base) for name in shapes)

    def actual(name):
        short = name.removeprefix(scheme.base) if bare else name
        candidates = [short]
        if "norm" in short.lower():
            candidates += [re.sub(r"\.weight$", ".gamma", short), re.sub(r"\.bias$", ".beta", short)]
        candidates += [hugging_face.OUTPUT_BIASES[short]] if short in hugging_face.OUTPUT_BIASES else []
        return next((candidate for candidate in candidates if candidate in shapes), None)

    return actual


def _present(entries, actual):
    """Returns `{our name: Entry}` of the entries whose tensors are there, by their actual names."""
    found = {}
    for entry in entries:
        names = [actual(part.name) for part in entry.parts]
        if None not in names:
            parts = tuple(dataclasses.replace(part, name=name) for part, name in zip(entry.parts, names, strict=True))
            found[entry.name] = dataclasses.replace(entry, parts=parts)
    return found


def _check_types(path, entries, tensors):
    """Raises InputError if a tensor of ours is not of plain numbers."""
    for part in (part for entry in entries.values() for part in entry.parts):
        if tensors.types[part.name] not in _NUMBERS:
            raise InputError(
                f"{path}: {part.name} is of the type {tensors.types[part.name]}; weights are read as {', '.join(_NUMBERS)}: "
                "take those that are not quantized"
            )


def _without(entries, head):
    return {name: entry for name, entry in entries.items() if not name.startswith(f"{head}/")}


def _vocabulary_size(path, entries, tensors, stated):
    """Returns the number of tokens: what the configuration states, or the rows of the table of word embeddings.

    Raises:
        InputError: if the two do not go together. There may be rows of padding as models here have.
    """
    table = entries.get("encoder/embeddings/word_embeddings/embeddings")
    if table is None:
        raise InputError(f"{path} has no word embeddings; it holds {', '.join(list(tensors.shapes)[:5])}, ...")
    rows = table.shape(tensors.shapes)[0]
    if stated in (None, rows):
        return rows
    if rows == padded_vocabulary_size(stated):
        return stated
    raise InputError(f"{path} has word embeddings of {rows:,} tokens, and its configuration says vocab_size {stated:,}")


def _description(folder, **fields):
    """Returns the `ModelDescription` of fields and the tokenizer in a folder.

    Raises:
        InputError: if there are more pieces than tokens.
    """
    description = ModelDescription(**fields, **read_tokenizer(folder, fields["vocabulary_size"]))
    if len(description.pieces or ()) > description.vocabulary_size:
        raise InputError(
            f"the vocabulary in {folder} has {len(description.pieces):,} pieces and the weights "
            f"{description.vocabulary_size:,} tokens: they do not belong together"
        )
    return description


def _others(entries, tensors, is_ignored):
    """Returns the names of the tensors that no entry takes: those that are unknown, and those that say nothing."""
    used = {part.name for entry in entries.values() for part in entry.parts}
    rest = [name for name in tensors.shapes if name not in used]
    return tuple(n for n in rest if not is_ignored(n)), tuple(n for n in rest if is_ignored(n))


def _checkpoint_prefix(folder, file, names, path):
    """Returns the prefix of a TensorFlow checkpoint, or None if there is none."""
    if file is not None:
        stem = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path)
        return stem if storage.exists(f"{stem}.index") or storage.exists(stem) else None
    stems = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    if not stems:  # of version 1, in which a checkpoint is one file
        stems = [name.removesuffix(".meta") for name in names if name.endswith(".meta")]
        stems = [stem for stem in stems if stem in names]
    if len(stems) > 1:
        raise InputError(f"{folder} holds several TensorFlow checkpoints: name one of {', '.join(stems)}")
    return storage.join(folder, stems[0]) if stems else None


def _tensorflow1(path, folder, config, prefix):
    tensors = CheckpointTensors(prefix)
    content = _read_config(folder, config, ("hidden_size", "num_attention_heads"))
    encoder = tensorflow1.encoder_config(tensors.shapes, content)
    kind = tensorflow1.model_type(tensors.shapes, content)
    scheme = tensorflow1.SCHEMES[kind]
    entries = _present(scheme.entries(encoder), lambda name: name if name in tensors.shapes else None)
    if tensorflow1.has_discriminator(tensors.shapes):
        entries = _without(entries, "masked_language_model")  # the generator's, which is another encoder
    _check_types(path, entries, tensors)
    classifier = {}
    if "classifier/classifier/kernel" in entries:
        count = entries["classifier/classifier/kernel"].shape(tensors.shapes)[-1]
        objective = "regression" if count == 1 else "single_label"
        classifier = {"labels": nameless_labels(count), "objective": objective, "pooling": "cls"}
    size = _vocabulary_size(path, entries, tensors, content.get("vocab_size"))
    description = _description(folder, encoder=encoder, vocabulary_size=size, **classifier)
    others = _others(entries, tensors, lambda name: tensorflow1.ignored(name, tensors.shapes))
    return WeightSource(f"TensorFlow 1, {kind}", path, description, entries, tensors, *others)
