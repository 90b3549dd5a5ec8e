"""Small models of Hugging Face's in folders, with numbers that no two tensors share, and what models answer."""

import os

import keras
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from trainer import storage
from trainer.weights.writing import write_weights

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCABULARY_SIZE, LENGTH = 60, 12
_SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
_ROBERTA = _SIZES | {"max_position_embeddings": 22, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_DISTILBERT = {
    "vocab_size": 60,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 20,
}
_SPECIAL_IDS = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}

# Family -> (stem of the classes, options of the configuration, what the classes are for).
_CLASSIFIES = "ForSequenceClassification"
FAMILIES = {
    "bert": ("Bert", _SIZES, ("Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction", _CLASSIFIES)),
    "roberta": ("Roberta", _ROBERTA, ("Model", "ForMaskedLM", _CLASSIFIES)),
    "xlm_roberta": ("XLMRoberta", _ROBERTA, ("ForMaskedLM",)),
    "albert": ("Albert", _SIZES | {"embedding_size": 8}, ("Model", "ForMaskedLM", "ForPreTraining", _CLASSIFIES)),
    "albert_unshared": ("Albert", _SIZES | {"embedding_size": 8, "num_hidden_groups": 2}, ("Model", "ForPreTraining")),
    "electra": ("Electra", _SIZES | {"embedding_size": 8}, ("Model", "ForMaskedLM", "ForPreTraining", _CLASSIFIES)),
    "electra_unprojected": ("Electra", _SIZES | {"embedding_size": 16}, ("ForPreTraining", _CLASSIFIES)),
    "distilbert": ("DistilBert", _DISTILBERT, ("Model", "ForMaskedLM", _CLASSIFIES)),
    "modernbert": ("ModernBert", _SIZES | _SPECIAL_IDS | {"local_attention": 8}, ("Model", "ForMaskedLM")),
    "roformer": ("RoFormer", _SIZES, ("Model", "ForMaskedLM", _CLASSIFIES)),
}
MODELS = [(family, purpose) for family, (_, _, purposes) in FAMILIES.items() for purpose in purposes]


def make_model(family, purpose, **options):
    """Returns a model; `options` are further ones of its configuration."""
    stem, sizes, _ = FAMILIES[family]
    torch.manual_seed(1)
    model = getattr(transformers, stem + purpose)(getattr(transformers, f"{stem}Config")(**(sizes | options)))
    for name, parameter in model.named_parameters():
        if "embed_positions" not in name:  # biases of zero would hide mistakes; sines are no weights
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def saved_model(folder, family, purpose, **options):
    """Saves a model in a folder; returns the path and the model."""
    model = make_model(family, purpose, **options)
    model.save_pretrained(folder)
    return str(folder), model


def tensors_of(folder):
    """Returns `{name: array}` of the safetensors in a folder."""
    return load_file(os.path.join(folder, "model.safetensors"))


def write_tensors(folder, tensors):
    """Writes `{name: array}` as the safetensors of a folder."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(arrays, os.path.join(folder, "model.safetensors"), {"format": "pt"})


def saved_nezha(folder):
    """Saves a NEZHA, which `transformers` has no more: BERT's tensors under its names, no table of positions."""
    path, _ = saved_model(folder, "bert", "ForPreTraining")
    tensors = {
        name.replace("bert.", "nezha.", 1): array
        for name, array in tensors_of(path).items()
        if "position_embeddings" not in name
    }
    write_tensors(path, tensors)
    config = storage.read_json(os.path.join(path, "config.json"))
    config |= {"model_type": "nezha", "architectures": ["NezhaForPreTraining"], "max_relative_position": 7}
    storage.write_json(os.path.join(path, "config.json"), config)
    return path


def rows(padding_id=0):
    """Returns int32 token ids `[3, 12]`, one row padded, and the mask of what is not padding."""
    ids = np.random.default_rng(0).integers(5, VOCABULARY_SIZE, (3, LENGTH)).astype(np.int32)
    ids[:, 0] = 2
    ids[1, 8:] = padding_id
    return ids, ids != padding_id


def their_answers(model, ids, mask):
    """Returns `{name: array}` of what a model of Hugging Face's answers, numbers of padding zero."""
    with torch.no_grad():
        result = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(np.int64)))
    tensors = {name: value.numpy() for name, value in result.items() if isinstance(value, torch.Tensor)}
    return {name: _without_padding(value, mask) for name, value in tensors.items()}


def our_answers(source, ids, mask, folder):
    """Returns the same of a Keras file that weights are written as, in a folder that is not there yet; by our names."""
    write_weights(source, str(folder), "keras")
    model = keras.saving.load_model(os.path.join(folder, "model.keras"))
    return {name: _without_padding(np.asarray(value), mask) for name, value in model(ids).items()}


def _without_padding(array, mask):
    of_tokens = array.shape[:2] == mask.shape
    return array * mask.reshape(*mask.shape, *[1] * (array.ndim - 2)) if of_tokens else array
