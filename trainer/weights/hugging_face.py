"""Hugging Face's models: their names, and `config.json` to and from our `EncoderConfig`."""

import re

from trainer.errors import InputError
from trainer.models.architecture import EncoderConfig
from trainer.weights.description import differing_fields
from trainer.weights.entries import NameScheme

_SEPARATE_CLASSIFIER = {"pooler": "classifier.dense", "classifier": "classifier.out_proj", "pair": None}

SCHEMES = {
    "bert": NameScheme(),
    "roberta": NameScheme(
        base="roberta.",
        first_position=2,
        token_dense="lm_head.dense",
        token_norm="lm_head.layer_norm",
        token_bias="lm_head.bias",
        **_SEPARATE_CLASSIFIER,
    ),
    "albert": NameScheme(
        base="albert.",
        embedding_projection="encoder.embedding_hidden_mapping_in",
        layer="encoder.albert_layer_groups.{layer}.albert_layers.0.",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_output="attention.dense",
        attention_norm="attention.LayerNorm",
        intermediate="ffn",
        output="ffn_output",
        output_norm="full_layer_layer_norm",
        pooler="albert.pooler",
        token_dense="predictions.dense",
        token_norm="predictions.LayerNorm",
        token_bias="predictions.bias",
        pair=("sop_classifier.classifier.weight", "sop_classifier.classifier.bias"),
    ),
    "electra": NameScheme(
        base="electra.",
        token_dense="generator_predictions.dense",
        token_norm="generator_predictions.LayerNorm",
        token_bias="generator_lm_head.bias",
        replaced_dense="discriminator_predictions.dense",
        replaced_score="discriminator_predictions.dense_prediction",
        **_SEPARATE_CLASSIFIER,
    ),
    "distilbert": NameScheme(
        base="distilbert.",
        layer="transformer.layer.{layer}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        intermediate="ffn.lin1",
        output="ffn.lin2",
        output_norm="output_layer_norm",
        pooler="pre_classifier",
        token_dense="vocab_transform",
        token_norm="vocab_layer_norm",
        token_bias="vocab_projector.bias",
        pair=None,
    ),
    "modernbert": NameScheme(
        base="model.",
        word="embeddings.tok_embeddings",
        embedding_norm="embeddings.norm",
        layer="layers.{layer}.",
        query_key_value="attn.Wqkv",
        attention_output="attn.Wo",
        attention_norm="attn_norm",
        intermediate="mlp.Wi",
        output="mlp.Wo",
        output_norm="mlp_norm",
        final_norm="final_norm",
        pooler=None,
        token_dense="head.dense",
        token_norm="head.norm",
        token_bias="decoder.bias",
        pair=None,
    ),
    "roformer": NameScheme(base="roformer.", interleaved=True, **_SEPARATE_CLASSIFIER),
    "nezha": NameScheme(base="nezha.", pooler="nezha.pooler.dense"),
}
# The same models under other names.
_ALIASES = {"xlm-roberta": "roberta", "camembert": "roberta"}

# Tensors that say nothing new: copies of tied ones, buffers that are computed.
IGNORED = re.compile(
    r"(^|\.)position_ids$|(^|\.)token_type_ids$|\.embed_positions\.weight$|relative_positions_encoding|rotary_emb|inv_freq"
    r"|^cls\.predictions\.decoder\.(weight|bias)$|^predictions\.decoder\.(weight|bias)$|^lm_head\.decoder\.(weight|bias)$"
    r"|^generator_lm_head\.weight$|^vocab_projector\.weight$|^decoder\.weight$"
)

# The output bias, where a file has it with the projection alone.
OUTPUT_BIASES = {
    "cls.predictions.bias": "cls.predictions.decoder.bias",
    "lm_head.bias": "lm_head.decoder.bias",
    "predictions.bias": "predictions.decoder.bias",
}

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
ACTIVATIONS |= {name: name for name in ("relu", "silu", "tanh", "elu", "mish")} | {"swish": "silu"}
_ACTIVATION_NAMES = {"gelu_tanh": "gelu_new"}

# Names of fields in most models' config.json, and in our configuration.
FIELDS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "max_position_embeddings": "max_length",
    "type_vocab_size": "type_vocabulary_size",
    "layer_norm_eps": "epsilon",
    "initializer_range": "initializer_range",
    "pad_token_id": "padding_id",
}
_DISTILBERT_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "hidden_dim": "intermediate_size",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "max_position_embeddings": "max_length",
    "initializer_range": "initializer_range",
    "pad_token_id": "padding_id",
}
_MODERNBERT_FIELDS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "mlp_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "max_position_embeddings": "max_length",
    "norm_eps": "epsilon",
    "norm_bias": "norm_bias",
    "attention_bias": "use_bias",
    "initializer_range": "initializer_range",
    "pad_token_id": "padding_id",
}


def scheme_of(config):
    """Returns the `NameScheme` for a `config.json`, a dict.

    Raises:
        InputError: if the model is none of those we know.
    """
    return SCHEMES[model_type_of(config)]


def model_type_of(config):
    """Returns the key into `SCHEMES` for a `config.json`, a dict."""
    name = config.get("model_type", "bert")
    name = _ALIASES.get(name, name)
    if name not in SCHEMES:
        raise InputError(f"models of the type {name!r} are not known here; known are {', '.join(sorted(SCHEMES))}")
    return name


def taken(config, fields):
    """Returns `{our field: value}` of what a configuration says, by a table `{their name: our field}`."""
    return {ours: config[theirs] for theirs, ours in fields.items() if config.get(theirs) is not None}


def _activation(config, name):
    theirs = config.get(name, "gelu")
    if theirs not in ACTIVATIONS:
        raise InputError(f"the activation {theirs!r} of config.json is not known; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[theirs]


def _refuse(condition, what):
    if condition:
        raise InputError(f"the model of config.json has {what}, which is not supported")


def encoder_config(config):
    """Returns the `EncoderConfig` of a `config.json`.

    Args:
        config: the file's content, a dict.

    Raises:
        InputError: if it asks for something that we do not have.
    """
    kind = model_type_of(config)
    _refuse(config.get("is_decoder", False), "a decoder")
    _refuse(
        config.get("position_embedding_type", "absolute") != "absolute",
        f"position_embedding_type {config.get('position_embedding_type')!r}",
    )
    if kind == "modernbert":
        return _modernbert_config(config)
    if kind == "distilbert":
        fields = taken(config, _DISTILBERT_FIELDS) | {"type_vocabulary_size": 0, "epsilon": 1e-12}
        fields["pooler_activation"] = "relu"
        return EncoderConfig(**fields, activation=_activation(config, "activation"), confine_attention=False)
    fields = taken(config, FIELDS) | {"activation": _activation(config, "hidden_act"), "confine_attention": False}
    if kind == "roberta":
        fields["max_length"] -= SCHEMES[kind].first_position
    if kind in ("albert", "electra", "roformer"):
        size = config.get("embedding_size", 128 if kind != "roformer" else None)
        fields["embedding_size"] = None if size == fields["hidden_size"] else size
    if kind in ("electra", "roformer"):
        fields["pooler_activation"] = "gelu"
    if kind == "albert":
        groups = config.get("num_hidden_groups", 1)
        _refuse(config.get("inner_group_num", 1) != 1, "layers inside groups (inner_group_num)")
        _refuse(
            groups not in (1, fields["num_layers"]), f"{groups} groups of layers: neither one nor as many as layers"
        )
        fields["share_layers"] = groups == 1
        fields.setdefault("epsilon", 1e-12)
    if kind == "roformer":
        _refuse(config.get("rotary_value", False), "rotary values")
        fields["positions"] = "rotary"
    if kind == "nezha":
        fields |= {"positions": "relative", "max_relative_distance": config.get("max_relative_position", 64)}
    return EncoderConfig(**fields)


def _modernbert_config(config):
    layers = config["num_hidden_layers"]
    every = config.get("global_attn_every_n_layers", 3)
    if config.get("layer_types"):
        glob = [number for number, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
        every = glob[1] if len(glob) > 1 else layers
        expected = [number for number in range(layers) if number % every == 0]
        _refuse(glob != expected, f"global attention in layers {glob}, not in every so many from the first")
    rotary = config.get("rope_parameters") or {}
    _refuse(
        any((rotary.get(kind) or {}).get("rope_type", "default") != "default" for kind in rotary),
        "scaled rotary positions",
    )

    def base(kind, old, default):
        return (rotary.get(kind) or {}).get("rope_theta", config.get(old, default))

    for name in ("mlp_bias", "classifier_bias"):
        _refuse(config.get(name, False) != config.get("attention_bias", False), f"{name} unlike attention_bias")
    fields = {"norm_bias": False, "use_bias": False, "epsilon": 1e-5, "dropout": 0.0, "attention_dropout": 0.0}
    fields |= taken(config, _MODERNBERT_FIELDS)
    return EncoderConfig(
        **fields,
        activation=_activation(config, "hidden_activation"),
        gated=True,
        type_vocabulary_size=0,
        positions="rotary",
        rotary_base=base("full_attention", "global_rope_theta", 160000.0),
        local_rotary_base=base("sliding_attention", "local_rope_theta", 10000.0),
        attention_window=config.get("local_attention", 128) // 2,
        global_every=every,
        norm_placement="before",
        prediction_bias=config.get("decoder_bias", True),
        confine_attention=False,
    )


def family(description, names):
    """Returns the type of Hugging Face's model that can hold a model of ours.

    Args:
        description: `ModelDescription`.
        names: our names of its tensors.

    Returns:
        key into `SCHEMES`.

    Raises:
        InputError: if no class of Hugging Face's computes the same.
    """
    config = description.encoder
    refuse_ours(config)
    has = {name.partition("/")[0] for name in names}
    projected = config.token_size != config.hidden_size
    if config.norm_placement == "before":
        kind = "modernbert"
    elif config.positions == "rotary":
        kind = "roformer"
    elif config.positions == "relative":
        kind = "nezha"
    elif "replaced_token_detection" in has:
        kind = "electra"
    elif config.share_layers or (projected and has & {"pooler", "sentence_pair"}):
        kind = "albert"
    elif projected:
        kind = "electra"
    elif config.type_vocabulary_size == 0:
        kind = "distilbert"
    else:
        kind = "roberta" if config.type_vocabulary_size == 1 else "bert"
    check_family(kind, description)
    return kind


def refuse_ours(config):
    """Raises InputError for what no file of another library can say."""
    for name, plain in (("condition_size", None), ("hierarchical_alpha", None), ("attention", "bidirectional")):
        if getattr(config, name) != plain:
            advice = (
                " (`tools.convert_weights --max_length` makes real ones of them)"
                if name == "hierarchical_alpha"
                else ""
            )
            raise InputError(
                f"a model with encoder.{name} = {getattr(config, name)!r} has no counterpart there{advice}"
            )


def check_family(kind, description):
    """Raises InputError unless the classes of a type compute what a model of ours does: its configuration comes back."""
    config = description.encoder
    back = encoder_config(json_config(kind, description))
    free = {
        "pooler_activation",
        "confine_attention",
        "rematerialize",
        "hierarchical_alpha",
        "padding_id",
        "max_relative_distance",
    }
    free |= {name for name, positions in _POSITION_FIELDS.items() if config.positions not in positions}
    free |= set() if config.attention_window else {"global_every", "attention_window", "local_rotary_base"}
    for name, (ours, theirs) in differing_fields(config, back, free).items():
        raise InputError(f"Hugging Face's {kind} has no encoder.{name} = {ours!r} (it would be {theirs!r})")


_POSITION_FIELDS = {
    "max_length": ("learned",),
    "max_relative_distance": ("relative",),
    "rotary_base": ("rotary",),
    "local_rotary_base": ("rotary",),
}

# Classes by what a model has; the first whose heads are all there.
_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "albert": "Albert",
    "electra": "Electra",
    "distilbert": "DistilBert",
    "modernbert": "ModernBert",
    "roformer": "RoFormer",
    "nezha": "Nezha",
}


def class_name(kind, names):
    """Returns the class of Hugging Face's for the heads that a model has."""
    has = {name.partition("/")[0] for name in names}
    stem = _CLASSES[kind]
    if "classifier" in has:
        return f"{stem}ForSequenceClassification"
    if "replaced_token_detection" in has:
        return f"{stem}ForPreTraining"
    if "masked_language_model" in has:
        return f"{stem}ForPreTraining" if "sentence_pair" in has and SCHEMES[kind].pair else f"{stem}ForMaskedLM"
    return f"{stem}Model"


def json_config(kind, description, names=()):
    """Returns the content of `config.json`, a dict.

    Args:
        kind: key into `SCHEMES`.
        description: `ModelDescription`.
        names: our names of the model's tensors.
    """
    config = description.encoder
    fields = {"distilbert": _DISTILBERT_FIELDS, "modernbert": _MODERNBERT_FIELDS}.get(kind, FIELDS)
    content = {theirs: getattr(config, ours) for theirs, ours in fields.items()}
    content |= {
        "model_type": kind,
        "architectures": [class_name(kind, names)],
        "vocab_size": description.vocabulary_size,
    }
    content |= {"tie_word_embeddings": True, "dtype": "float32"}
    act = {"distilbert": "activation", "modernbert": "hidden_activation"}.get(kind, "hidden_act")
    content[act] = _ACTIVATION_NAMES.get(config.activation, config.activation)
    width = {"distilbert": "hidden_dim"}.get(kind, "intermediate_size")
    content[width] = config.feed_forward_size
    if kind == "roberta":
        content["max_position_embeddings"] += SCHEMES[kind].first_position
    if kind in ("albert", "electra", "roformer"):
        content["embedding_size"] = config.token_size
    if kind == "albert":
        content |= {"num_hidden_groups": 1 if config.share_layers else config.num_layers, "inner_group_num": 1}
    if kind == "nezha":
        content["max_relative_position"] = config.max_relative_distance
    if kind == "modernbert":
        content |= {
            "local_attention": 2 * (config.attention_window or config.max_length),
            "global_attn_every_n_layers": config.global_every if config.attention_window else 1,
            "global_rope_theta": config.rotary_base,
            "local_rope_theta": config.rotary_base_of(1) if config.is_local(1) else config.rotary_base,
            "mlp_bias": config.use_bias,
            "classifier_bias": config.use_bias,
            "decoder_bias": config.prediction_bias,
        }
    if description.labels or description.objective:
        problems = {"multi_label": "multi_label_classification", "regression": "regression"}
        labels = description.labels or ("LABEL_0",)
        content |= {
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": problems.get(description.objective, "single_label_classification"),
        }
    return content


# What stands between the encoder and the scores in their classifiers, where that is what our pooler does.
_POOLER_ACTIVATIONS = {"bert": "tanh", "roberta": "tanh", "albert": "tanh", "nezha": "tanh"}
_POOLER_ACTIVATIONS |= {"electra": "gelu", "roformer": "gelu", "distilbert": "relu"}


def check_classifier(kind, description, names):
    """Raises InputError unless their classifier computes what ours does."""
    if description.pooling != "cls" or "pooler/pooler/kernel" not in names:
        raise InputError(
            f"Hugging Face's {kind} classifies by the first token and a dense layer; this model has pooling "
            f"{description.pooling!r}{'' if 'pooler/pooler/kernel' in names else ' and no pooler'}"
        )
    theirs = _POOLER_ACTIVATIONS.get(kind)
    if theirs != description.encoder.pooler_activation:
        raise InputError(
            f"Hugging Face's {kind} has {theirs or 'another layer'} in its classifier, this model "
            f"{description.encoder.pooler_activation}"
        )
