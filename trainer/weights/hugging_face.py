"""Hugging Face's models: their names, and `config.json` to and from our `EncoderConfig`."""

import re

import numpy as np

from trainer.data.vocabulary import CLASSIFICATION, SEPARATOR
from trainer.errors import InputError
from trainer.models.architecture import EncoderConfig
from trainer.models.attention import rotary_angles
from trainer.weights.description import differing_fields, nameless_labels
from trainer.weights.entries import NameScheme

# Classifiers with a dense layer of their own.
_OWN_DENSE = {"classifier_pooler": "classifier.dense", "classifier": "classifier.out_proj", "pair": None}

SCHEMES = {
    "bert": NameScheme(),
    "roberta": NameScheme(
        base="roberta.",
        first_position=2,
        pooler="roberta.pooler.dense",
        token_dense="lm_head.dense",
        token_norm="lm_head.layer_norm",
        token_bias="lm_head.bias",
        **_OWN_DENSE,
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
        pooler=None,
        **_OWN_DENSE,
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
        classifier=None,  # it stands on a dense layer and a normalisation
    ),
    "roformer": NameScheme(base="roformer.", interleaved=True, pooler=None, **_OWN_DENSE),
    "nezha": NameScheme(base="nezha.", pooler="nezha.pooler.dense"),
}
# The same models under other names.
_ALIASES = {"xlm-roberta": "roberta", "camembert": "roberta"}

# Buffers that are computed, and copies of the output bias.
_IGNORED = re.compile(
    r"(^|\.)position_ids$|(^|\.)token_type_ids$|(^|\.)embed_positions\.weight$|relative_positions_encoding|rotary_emb|inv_freq"
    r"|^(cls\.predictions|predictions|lm_head)\.decoder\.bias$"
)
# The output matrix, a copy of the word embeddings where the two are tied.
_OUTPUT_MATRIX = re.compile(
    r"^((cls\.predictions|predictions|lm_head)\.)?decoder\.weight$|^(generator_lm_head|vocab_projector)\.weight$"
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
    name = config.get("model_type")
    if not isinstance(name, str) or _ALIASES.get(name, name) not in SCHEMES:
        raise InputError(f"models of the type {name!r} are not known here; known are {', '.join(sorted(SCHEMES))}")
    return _ALIASES.get(name, name)


def with_model_type(config, names):
    """Returns a `config.json` with its `model_type`; where it has none, classes or the names of tensors must tell.

    Args:
        config: the file's content, a dict.
        names: of the tensors.

    Raises:
        InputError: if nothing tells.
    """
    if config.get("model_type") is not None:
        return config
    stems = {stem: kind for kind, stem in _CLASS_STEMS.items()} | {"XLMRoberta": "roberta", "Camembert": "roberta"}
    classes = _architectures(config)
    told = {kind for stem, kind in stems.items() for name in classes if re.match(f"{stem}(Model|For)", name)}
    told = told or {kind for kind, scheme in SCHEMES.items() if any(name.startswith(scheme.base) for name in names)}
    if len(told) != 1:
        raise InputError(
            "config.json has no model_type, and neither its architectures nor the names of the tensors tell which model it "
            f"is: add one of {', '.join(sorted(SCHEMES))}"
        )
    return config | {"model_type": told.pop()}


def _architectures(config):
    """Returns the names of the classes in a `config.json`, a dict; empty if there are none."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"architectures of config.json must be a list of names, not {names!r}")
    return names


def may_classify(config):
    """Returns whether a layer called classifier may be that of texts, by a `config.json`, a dict.

    Classifiers of tokens and of choices have one of the same name.
    """
    names = _architectures(config)
    return not names or any(name.endswith("ForSequenceClassification") for name in names)


def check_token_head(kind, encoder, names):
    """Raises InputError if a type's head predicts tokens by another activation than ours would.

    Args:
        kind: key into `SCHEMES`.
        encoder: `EncoderConfig`.
        names: our names of the tensors.
    """
    if (
        kind == "roberta"
        and encoder.activation != "gelu"
        and any(name.startswith("masked_language_model/") for name in names)
    ):
        raise InputError(
            f"RoBERTa's masked-language-model head computes by gelu even if the encoder has {encoder.activation}; ours does "
            "not. The encoder alone can be taken from a file without lm_head"
        )


def taken(config, fields):
    """Returns `{our field: value}` of what a configuration says, by a table `{their name: our field}`."""
    return {ours: config[theirs] for theirs, ours in fields.items() if config.get(theirs) is not None}


def ignored(name, config):
    """Returns whether a tensor says nothing that others do not.

    Args:
        name: of a tensor in a file.
        config: the content of `config.json`, a dict.
    """
    tied = config.get("tie_word_embeddings", True)
    return bool(_IGNORED.search(name) or (tied and _OUTPUT_MATRIX.search(name)))


def classes(config, count):
    """Returns the names of the classes of a classifier, and its objective: `single_label`, `multi_label`, `regression`.

    Args:
        config: the content of `config.json`, a dict.
        count: number of its outputs.

    Raises:
        InputError: if there are other numbers of names and outputs.
    """
    named = config.get("id2label") or dict(zip(map(str, range(count)), nameless_labels(count), strict=True))
    if sorted(named) != sorted(map(str, range(count))):
        raise InputError(f"id2label of config.json names {', '.join(named)} for a classifier with {count} outputs")
    kinds = {"regression": "regression", "multi_label_classification": "multi_label"}
    kinds |= {"single_label_classification": "single_label", None: "regression" if count == 1 else "single_label"}
    problem = config.get("problem_type")
    if problem not in kinds:
        raise InputError(f"the problem_type {problem!r} of config.json is not known")
    return tuple(named[str(number)] for number in range(count)), kinds[problem]


def _activation(config, name, default="gelu"):
    theirs = config.get(name, default)
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
        InputError: if it asks for something that we do not have, or lacks what the tensors do not tell.
    """
    kind = model_type_of(config)
    _refuse(config.get("is_decoder", False), "a decoder")
    _refuse(
        config.get("position_embedding_type", "absolute") != "absolute",
        f"position_embedding_type {config.get('position_embedding_type')!r}",
    )
    names = {ours: theirs for theirs, ours in _fields_of(kind).items()}
    for needed in ("hidden_size", "num_layers", "num_heads"):
        if config.get(names[needed]) is None:
            raise InputError(f"config.json has no {names[needed]!r}, which the tensors do not tell")
    special = {"distilbert": _distilbert_config, "modernbert": _modernbert_config}
    try:
        return special[kind](config) if kind in special else _bert_like_config(kind, config)
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(f"config.json describes no model: {error}") from None


def _fields_of(kind):
    return {"distilbert": _DISTILBERT_FIELDS, "modernbert": _MODERNBERT_FIELDS}.get(kind, FIELDS)


def _bert_like_config(kind, config):
    fields = taken(config, FIELDS) | {"confine_attention": False}
    fields["activation"] = _activation(config, "hidden_act", "gelu_new" if kind == "albert" else "gelu")
    if kind == "roberta":
        first = SCHEMES[kind].first_position
        _refuse(fields.setdefault("padding_id", 1) + 1 != first, f"pad_token_id {fields['padding_id']}, not 1")
        fields["max_length"] = fields.get("max_length", 512) - first
    if kind in ("albert", "electra", "roformer"):
        size = config.get("embedding_size", 128 if kind != "roformer" else None)
        fields["embedding_size"] = None if size == fields["hidden_size"] else size
    if kind == "electra":  # its classifiers and generators compute by that, whatever hidden_act is
        _refuse(fields["activation"] != "gelu", f"hidden_act {config.get('hidden_act')!r} in ELECTRA")
    if kind in ("electra", "roformer"):
        fields["pooler_activation"] = fields["activation"]
    if kind == "albert":
        groups = config.get("num_hidden_groups", 1)
        _refuse(config.get("inner_group_num", 1) != 1, "layers inside groups (inner_group_num)")
        _refuse(
            groups not in (1, fields["num_layers"]), f"{groups} groups of layers: neither one nor as many as layers"
        )
        fields["share_layers"] = groups == 1
    if kind == "roformer":
        _refuse(config.get("rotary_value", False), "rotary values")
        fields["positions"] = "rotary"
    if kind == "nezha":
        fields |= {"positions": "relative", "max_relative_distance": config.get("max_relative_position", 64)}
    return EncoderConfig(**fields)


def _distilbert_config(config):
    return EncoderConfig(
        **taken(config, _DISTILBERT_FIELDS),
        activation=_activation(config, "activation"),
        type_vocabulary_size=0,
        epsilon=1e-12,
        pooler_activation="relu",
        confine_attention=False,
    )


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

    activation = _activation(config, "hidden_activation")
    _refuse(
        ACTIVATIONS.get(config.get("classifier_activation", "gelu")) != activation,
        f"classifier_activation {config.get('classifier_activation')!r}, unlike hidden_activation",
    )
    for name in ("mlp_bias", "classifier_bias"):
        _refuse(config.get(name, False) != config.get("attention_bias", False), f"{name} unlike attention_bias")
    fields = {"norm_bias": False, "use_bias": False, "epsilon": 1e-5, "dropout": 0.0, "attention_dropout": 0.0}
    fields |= taken(config, _MODERNBERT_FIELDS)
    return EncoderConfig(
        **fields,
        activation=activation,
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
    refuse_ours(description.encoder)
    problems = []
    for kind in _likely_families(description.encoder, {name.partition("/")[0] for name in names}):
        try:
            check_family(kind, description, names)
            return kind
        except InputError as problem:
            problems.append(problem)
    raise problems[0]


def _likely_families(config, has):
    """Returns keys into `SCHEMES`, the likeliest first, for an architecture and the first parts of our names."""
    projected = config.token_size != config.hidden_size
    if config.norm_placement == "before":
        return ("modernbert",)
    if config.positions in ("rotary", "relative"):
        return ("roformer",) if config.positions == "rotary" else ("nezha",)
    if "replaced_token_detection" in has:
        return ("electra",)
    if config.share_layers:
        return ("albert",)
    if projected:
        return ("albert", "electra") if has & {"pooler", "sentence_pair"} else ("electra", "albert")
    if config.type_vocabulary_size == 0:
        return ("distilbert",)
    return ("roberta" if config.type_vocabulary_size == 1 and config.padding_id == 1 else "bert", "electra")


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


def check_family(kind, description, names):
    """Raises InputError unless the classes of a type compute what a model of ours does: its configuration comes back.

    Args:
        kind: key into `SCHEMES`.
        description: `ModelDescription`.
        names: our names of the model's tensors.
    """
    config, scheme = description.encoder, SCHEMES[kind]
    has = {name.partition("/")[0] for name in names}
    back = encoder_config(json_config(kind, description))
    free = {"pooler_activation", "confine_attention", "rematerialize"}
    free |= set() if "masked_language_model" in has else {"prediction_transform", "prediction_bias"}
    for name, (ours, theirs) in differing_fields(config, back, free).items():
        raise InputError(f"Hugging Face's {kind} has no encoder.{name} = {ours!r} (it would be {theirs!r})")
    check_token_head(kind, config, names)
    classifies, pools = "classifier" in has, "pooler" in has
    if classifies and scheme.classifier is None:
        raise InputError(f"Hugging Face's {kind} classifies by another head than this model")
    if classifies and (description.pooling != "cls" or not pools):
        raise InputError(
            f"Hugging Face's {kind} classifies by the first token and a dense layer; this model has pooling "
            f"{description.pooling!r}{'' if pools else ' and no dense layer'}"
        )
    if pools and scheme.pooler_for(classifies) and back.pooler_activation != config.pooler_activation:
        raise InputError(
            f"Hugging Face's {kind} has {back.pooler_activation} behind the pooler's dense layer, this model "
            f"{config.pooler_activation}"
        )


_CLASS_STEMS = {
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
    stem = _CLASS_STEMS[kind]
    if "classifier" in has:
        return f"{stem}ForSequenceClassification"
    if "replaced_token_detection" in has:
        return f"{stem}ForPreTraining"
    pairs = "sentence_pair" in has and SCHEMES[kind].pair
    if "masked_language_model" in has:
        return f"{stem}ForPreTraining" if pairs else f"{stem}ForMaskedLM"
    return f"{stem}ForNextSentencePrediction" if pairs and kind in ("bert", "nezha") else f"{stem}Model"


def json_config(kind, description, names=()):
    """Returns the content of `config.json`, a dict.

    Args:
        kind: key into `SCHEMES`.
        description: `ModelDescription`.
        names: our names of the model's tensors.
    """
    config = description.encoder
    content = {theirs: getattr(config, ours) for theirs, ours in _fields_of(kind).items()}
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
            "classifier_activation": content[act],
        }
        if description.pieces is not None:  # its own would lie beyond a small vocabulary
            ids = {piece: number for number, piece in enumerate(description.pieces)}
            first, last = ids.get(CLASSIFICATION), ids.get(SEPARATOR)
            content |= {"cls_token_id": first, "bos_token_id": first, "sep_token_id": last, "eos_token_id": last}
    if description.labels or description.objective:
        problems = {"multi_label": "multi_label_classification", "regression": "regression"}
        labels = description.labels or ("LABEL_0",)
        content |= {
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": problems.get(description.objective, "single_label_classification"),
        }
    return content


def buffers(kind, config):
    """Returns `{name: array}` of what a family's files hold besides weights: RoFormer's sines and cosines.

    Args:
        kind: key into `SCHEMES`.
        config: `EncoderConfig`.
    """
    if kind != "roformer":
        return {}
    angles = rotary_angles(config.max_length, config.head_size, config.rotary_base)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return {"roformer.encoder.embed_positions.weight": table}
