"""TensorFlow 1 checkpoints: the names of Google's BERT, ALBERT and ELECTRA, and of what bert4keras users trained.

NEZHA, RoFormer and RoFormerV2 keep BERT's names; which one a file holds is told by what it lacks.
"""

import dataclasses
import re

from trainer.errors import InputError
from trainer.models.architecture import EncoderConfig
from trainer.weights.description import differing_fields
from trainer.weights.entries import TENSORFLOW, NameScheme
from trainer.weights.hugging_face import ACTIVATIONS, FIELDS, taken

_BERT = NameScheme(
    style=TENSORFLOW,
    base="bert/",
    word="embeddings/word_embeddings",
    position="embeddings/position_embeddings",
    type="embeddings/token_type_embeddings",
    embedding_norm="embeddings/LayerNorm",
    embedding_projection="encoder/embedding_hidden_mapping_in",
    layer="encoder/layer_{layer}/",
    query="attention/self/query",
    key="attention/self/key",
    value="attention/self/value",
    attention_output="attention/output/dense",
    attention_norm="attention/output/LayerNorm",
    intermediate="intermediate/dense",
    output="output/dense",
    output_norm="output/LayerNorm",
    pooler="bert/pooler/dense",
    token_dense="cls/predictions/transform/dense",
    token_norm="cls/predictions/transform/LayerNorm",
    token_bias="cls/predictions/output_bias",
    pair=("cls/seq_relationship/output_weights", "cls/seq_relationship/output_bias"),
    classifier=None,
    classifier_variables=("output_weights", "output_bias"),  # run_classifier.py's
)
SCHEMES = {
    "bert": _BERT,
    "nezha": _BERT,
    "roformer": dataclasses.replace(_BERT, interleaved=True),
    "roformer_v2": dataclasses.replace(_BERT, interleaved=True),
    "albert": dataclasses.replace(
        _BERT,
        layer="encoder/transformer/group_0/inner_group_0/",
        query="attention_1/self/query",
        key="attention_1/self/key",
        value="attention_1/self/value",
        attention_output="attention_1/output/dense",
        attention_norm="LayerNorm",
        intermediate="ffn_1/intermediate/dense",
        output="ffn_1/intermediate/output/dense",
        output_norm="LayerNorm_1",
    ),
    "electra": dataclasses.replace(
        _BERT,
        base="electra/",
        embedding_projection="embeddings_project",
        pooler=None,
        pair=None,
        token_dense="generator_predictions/dense",
        token_norm="generator_predictions/LayerNorm",
        token_bias="generator_predictions/output_bias",
        replaced_dense="discriminator_predictions/dense",
        replaced_score="discriminator_predictions/dense_1",
        classifier_variables=None,
    ),
}

# What an optimizer left behind, and counters.
_IGNORED = re.compile(
    r"(^|/)(adam_[mv]|lamb_[mv]|Adam(_1)?|global_step|ag|LMBOptimizer.*)$|^(beta[12]_power|signal_early_stop)"
)
# ELECTRA's generator is another, smaller encoder beside the discriminator.
_GENERATOR = ("generator/", "generator_predictions/")


def ignored(name, shapes):
    """Returns whether a tensor belongs to no model, or to the generator beside a discriminator, which is the model.

    Args:
        name: of a tensor.
        shapes: `{name: shape}` of all of them.
    """
    return bool(_IGNORED.search(name)) or (name.startswith(_GENERATOR) and has_discriminator(shapes))


def has_discriminator(shapes):
    """Returns whether the encoder of ELECTRA's checkpoint is the discriminator, and not a generator alone."""
    return any(name.startswith(("discriminator_predictions/", "generator/")) for name in shapes)


def model_type(shapes, config):
    """Returns the key into `SCHEMES` for a checkpoint.

    Args:
        shapes: `{name: shape}` of its tensors.
        config: the content of its configuration file, a dict.

    Raises:
        InputError: if there is no encoder in it that we know.
    """
    if "electra/embeddings/word_embeddings" in shapes:
        return "electra"
    if "bert/embeddings/word_embeddings" not in shapes:
        raise InputError(
            "the checkpoint holds neither bert/embeddings/word_embeddings nor electra/embeddings/word_embeddings; it has "
            f"{', '.join(sorted(shapes)[:3])}, ..."
        )
    if any(name.startswith("bert/encoder/transformer/group_0/") for name in shapes):
        return "albert"
    if config.get("use_relative_position") or config.get("model_type") == "nezha":
        return "nezha"
    if "bert/embeddings/position_embeddings" in shapes:
        return "bert"
    return "roformer" if "bert/embeddings/LayerNorm/gamma" in shapes else "roformer_v2"


def encoder_config(shapes, config):
    """Returns the `EncoderConfig` of a checkpoint; arguments as in `model_type`.

    Raises:
        InputError: if the configuration lacks what the tensors cannot tell.
    """
    kind = model_type(shapes, config)
    for name in ("num_attention_heads", "num_hidden_layers", "hidden_size"):
        if config.get(name) is None:
            raise InputError(f"the configuration beside the checkpoint has no {name!r}, which its tensors do not tell")
    theirs = config.get("hidden_act", "gelu")
    if theirs not in ACTIVATIONS:
        raise InputError(f"the activation {theirs!r} is not known; known are {', '.join(ACTIVATIONS)}")
    try:
        return _config(kind, shapes, config, theirs)
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"the configuration beside the checkpoint describes no model: {error}") from None


def _config(kind, shapes, config, activation):
    fields = {"confine_attention": False, "padding_id": 0} | taken(config, FIELDS)
    # ALBERT's own code computes "gelu" by tanh. BERT's did by erf, then by tanh; all who read its files compute by erf.
    fields["activation"] = "gelu_tanh" if activation == "gelu" and kind == "albert" else ACTIVATIONS[activation]
    base = SCHEMES[kind].base
    size = shapes[f"{base}embeddings/word_embeddings"][1]
    fields["embedding_size"] = None if size == fields["hidden_size"] else size
    types = shapes.get(f"{base}embeddings/token_type_embeddings")
    fields["type_vocabulary_size"] = 0 if types is None else types[0]
    if kind == "albert":
        fields["share_layers"] = True
    if kind in ("roformer", "roformer_v2"):
        fields |= {"positions": "rotary", "epsilon": config.get("layer_norm_eps", 1e-7)}
    if kind == "roformer_v2":
        no_vectors = {"normalization": "rms", "norm_scale": False, "norm_bias": False, "use_bias": False}
        fields |= no_vectors | {"prediction_transform": False, "prediction_bias": False}
    if kind == "nezha":
        fields |= {"positions": "relative", "max_relative_distance": config.get("max_relative_position", 64)}
    return EncoderConfig(**fields)


def family(description, names):
    """Returns the key into `SCHEMES` of the names that can hold a model of ours.

    Args:
        description: `ModelDescription`.
        names: our names of its tensors.

    Raises:
        InputError: if none can.
    """
    config = description.encoder
    if config.norm_placement == "before" or config.gated:
        raise InputError("TensorFlow 1 checkpoints have no names for models with normalisations before, or gated ones")
    if any(name.startswith("replaced_token_detection/") for name in names):
        return "electra"
    if config.positions == "rotary":
        return "roformer" if config.normalization == "layer" else "roformer_v2"
    if config.positions == "relative":
        return "nezha"
    return "albert" if config.share_layers else "bert"


def json_config(kind, description):
    """Returns the content of `bert_config.json`, a dict, for a key into `SCHEMES` and a `ModelDescription`."""
    config = description.encoder
    content = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    names = {"gelu": "gelu", "gelu_tanh": "gelu_new" if kind != "albert" else "gelu"}
    content |= {
        "vocab_size": description.vocabulary_size,
        "hidden_act": names.get(config.activation, config.activation),
        "intermediate_size": config.feed_forward_size,
    }
    if kind == "nezha":
        content |= {"use_relative_position": True, "max_relative_position": config.max_relative_distance}
    if config.token_size != config.hidden_size:
        content["embedding_size"] = config.token_size
    return content


def check_same(kind, description, back, names):
    """Raises InputError unless what reading gives back is the model's own in all that computes.

    Args:
        kind: key into `SCHEMES`.
        description: `ModelDescription`.
        back: `EncoderConfig` that is read.
        names: our names of the model's tensors.
    """
    scheme, has = SCHEMES[kind], {name.partition("/")[0] for name in names}
    free = {"confine_attention", "rematerialize"}
    free |= set() if "pooler" in has and scheme.pooler else {"pooler_activation"}
    free |= set() if "masked_language_model" in has else {"prediction_transform", "prediction_bias"}
    for name, (value, read) in differing_fields(description.encoder, back, free).items():
        raise InputError(
            f"a TensorFlow 1 checkpoint of the kind {kind} has no encoder.{name} = {value!r} (it would be read as {read!r})"
        )
    if "classifier" in has and scheme.classifier_variables and (description.pooling != "cls" or "pooler" not in has):
        raise InputError(
            "the classifier of a TensorFlow 1 checkpoint stands on the first token and a dense layer; this model has "
            f"pooling {description.pooling!r}{'' if 'pooler' in has else ' and no dense layer'}"
        )
