"""Opening weights, whatever they are: what kind, which architecture, which of our tensors they hold."""

import dataclasses
import json
import re

from trainer import storage
from trainer.errors import InputError
from trainer.weights import hugging_face, tensorflow1
from trainer.weights.description import VOCABULARY_NAME, ModelDescription, looks_lower_cased, read_pieces
from trainer.weights.keras_files import open_keras
from trainer.weights.own_checkpoint import describe_checkpoint, open_checkpoint
from trainer.weights.source import WeightSource
from trainer.weights.tensors import CheckpointTensors, SafetensorsFiles, TorchFile

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
    path = str(path).rstrip("/")
    if path.endswith((".keras", ".weights.h5")):
        return open_keras(path)
    if own := open_checkpoint(path):
        return own
    folder, file = _folder_and_file(path)
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
    path = str(path).rstrip("/")
    return describe_checkpoint(path) or open_weights(path, config).description


def _folder_and_file(path):
    """Returns the folder of a path, and the file's name where it is not a folder itself."""
    if storage.is_folder(path):
        return path, None
    folder, _, file = path.rpartition("/")
    return folder or ".", file


def _read_config(folder, names, config, keys):
    """Returns the content of the configuration beside weights: the one file that has the keys."""
    if config is not None:
        if not storage.exists(config):
            raise InputError(f"there is no configuration {config}")
        return _json(config)
    for name in sorted(names, key=lambda name: (name != "config.json", name)):
        if name.endswith(".json"):
            content = _json(storage.join(folder, name), damaged_is_none=name != "config.json")
            if isinstance(content, dict) and any(key in content for key in keys):
                return content
    raise InputError(f"{folder} has no configuration (config.json, bert_config.json) beside the weights: give one")


def _json(path, damaged_is_none=False):
    try:
        return json.loads(storage.read_text(path))
    except ValueError as error:
        if damaged_is_none:
            return None
        raise InputError(f"{path} is not JSON: {error}") from None


def _safetensors_or_torch(folder, file, names):
    """Returns the paths of Hugging Face's weights in a folder, safetensors before others; empty if there are none."""
    if file is not None:
        return [storage.join(folder, file)] if file.endswith((".safetensors", ".bin", ".pt")) else []
    for name in (_SAFETENSORS, _TORCH):
        if name in names:
            return [storage.join(folder, name)]
        if f"{name}.index.json" in names:
            index = _json(storage.join(folder, f"{name}.index.json"))
            return [storage.join(folder, part) for part in sorted(set(index["weight_map"].values()))]
    others = [name for name in names if name.endswith(".safetensors")]
    return [storage.join(folder, others[0])] if len(others) == 1 else []


def _hugging_face(path, folder, config, files):
    names = storage.listing(folder)
    content = _read_config(folder, names, config, ("model_type", "hidden_size", "dim"))
    encoder = hugging_face.encoder_config(content)
    scheme = hugging_face.scheme_of(content)
    if files[0].endswith(".safetensors"):
        tensors = SafetensorsFiles(files)
    elif len(files) == 1:
        tensors = TorchFile(files[0])
    else:
        raise InputError(f"{path}: pickles in several files are not read; convert them to safetensors")
    actual = _actual_names(tensors.shapes, scheme)
    entries, used = _present(scheme.entries(encoder), actual)
    unknown = [name for name in tensors.shapes if name not in used and not hugging_face.IGNORED.search(name)]
    labels = content.get("id2label") or {}
    labels = tuple(labels[key] for key in sorted(labels, key=int)) if "classifier/classifier/kernel" in entries else ()
    objective = {"regression": "regression", "multi_label_classification": "multi_label"}.get(
        content.get("problem_type"), "single_label"
    )
    description = ModelDescription(
        encoder=encoder,
        vocabulary_size=content["vocab_size"],
        labels=labels,
        objective=objective if labels else None,
        pooling="cls" if labels else None,
        **_tokenizer(folder, names),
    )
    kind = f"Hugging Face, {hugging_face.model_type_of(content)}"
    return WeightSource(kind, path, description, entries, tensors, tuple(unknown))


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
    """Returns `{our name: Entry}` of the entries whose tensors are there, by their actual names, and the names used."""
    found, used = {}, set()
    for entry in entries:
        names = [actual(part.name) for part in entry.parts]
        if None in names:
            continue
        parts = tuple(dataclasses.replace(part, name=name) for part, name in zip(entry.parts, names, strict=True))
        found[entry.name] = dataclasses.replace(entry, parts=parts)
        used.update(names)
    return found, used


def _checkpoint_prefix(folder, file, names, path):
    """Returns the prefix of a TensorFlow checkpoint, or None if there is none."""
    if file is not None:
        stem = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path)
        return stem if storage.exists(f"{stem}.index") or storage.exists(stem) else None
    stems = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    if len(stems) > 1:
        raise InputError(f"{folder} holds several TensorFlow checkpoints: name one of {', '.join(stems)}")
    return storage.join(folder, stems[0]) if stems else None


def _tensorflow1(path, folder, config, prefix):
    names = storage.listing(folder)
    tensors = CheckpointTensors(prefix)
    content = _read_config(folder, names, config, ("hidden_size", "num_attention_heads"))
    encoder = tensorflow1.encoder_config(tensors.shapes, content)
    kind = tensorflow1.model_type(tensors.shapes, content)
    scheme = tensorflow1.SCHEMES[kind]
    entries, used = _present(scheme.entries(encoder), lambda name: name if name in tensors.shapes else None)
    unknown = [name for name in tensors.shapes if name not in used and not tensorflow1.IGNORED.search(name)]
    size = tensors.shapes[f"{scheme.base}embeddings/word_embeddings"][0]
    description = ModelDescription(encoder=encoder, vocabulary_size=size, **_tokenizer(folder, names))
    return WeightSource(f"TensorFlow 1, {kind}", path, description, entries, tensors, tuple(unknown))


def _tokenizer(folder, names):
    """Returns the fields of `ModelDescription` that are about the tokenizer beside weights."""
    settings = _json(storage.join(folder, "tokenizer_config.json")) if "tokenizer_config.json" in names else {}
    whole = _json(storage.join(folder, "tokenizer.json")) if "tokenizer.json" in names else {}
    pieces = read_pieces(storage.join(folder, VOCABULARY_NAME))
    model = whole.get("model") or {}
    if pieces is None and model.get("type") == "WordPiece":
        pieces = tuple(sorted(model["vocab"], key=model["vocab"].get))
    if pieces is None:
        kept = ("tokenizer", "vocab.", "merges.", "special_tokens", "spiece.", "sentencepiece")
        return {"tokenizer_files": tuple(storage.join(folder, name) for name in names if name.startswith(kept))}
    lower_case = settings.get("do_lower_case", (whole.get("normalizer") or {}).get("lowercase"))
    return {"pieces": pieces, "lower_case": looks_lower_cased(pieces) if lower_case is None else lower_case}
