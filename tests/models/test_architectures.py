"""Every architecture computes what its classes in Hugging Face's transformers compute, and has their gradients."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from agreement import expect_equal_gradients, model_with_weights, outputs_and_gradients

from trainer.weights import hugging_face

torch = pytest.importorskip("torch", reason="compares with PyTorch: install a CPU build, see .ci/run")
transformers = pytest.importorskip("transformers", reason="compares with transformers: pip install '.[test]'")

VOCABULARY = 60
LENGTHS = (18, 11, 5)
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
FACTORISED = TINY | {"embedding_size": 8}
ROBERTA = TINY | {"max_position_embeddings": 22, "type_vocab_size": 1, "pad_token_id": 1}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 16,
    "n_layers": 3,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 20,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
}
MODERNBERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 5,  # 0 and 3 are global
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "local_attention": 8,  # four tokens to either side, of 18
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A class of theirs, the options of its configuration, our heads, and their names for what our outputs are."""

    stem: str
    class_suffix: str
    options: dict
    heads: tuple
    outputs: dict

    def __hash__(self):
        return id(self)


def masked_language_model(stem, options):
    return Case(stem, "ForMaskedLM", options, ("masked_language_model",), {"token_logits": "logits"})


def pretraining(stem, options, pair):
    outputs = {"token_logits": "prediction_logits", "pooled": "pooler_output", "pair_logits": pair}
    return Case(stem, "ForPreTraining", options, ("masked_language_model", "pooler", "sentence_pair"), outputs)


def classification(stem, options):
    options = options | {"num_labels": 3}
    return Case(stem, "ForSequenceClassification", options, ("pooler", "classifier"), {"logits": "logits"})


CASES = {
    "bert": pretraining("Bert", TINY, "seq_relationship_logits"),
    "bert with the approximate gelu": masked_language_model("Bert", TINY | {"hidden_act": "gelu_new"}),
    "bert classifying": classification("Bert", TINY),
    "roberta": masked_language_model("Roberta", ROBERTA),
    "roberta classifying": classification("Roberta", ROBERTA),
    "albert": pretraining("Albert", FACTORISED, "sop_logits"),
    "albert, unshared": pretraining("Albert", FACTORISED | {"num_hidden_groups": 3}, "sop_logits"),
    "albert classifying": classification("Albert", FACTORISED | {"classifier_dropout_prob": 0.0}),
    "electra's generator": masked_language_model("Electra", FACTORISED),
    "electra's discriminator": Case(
        "Electra", "ForPreTraining", FACTORISED, ("replaced_token_detection",), {"replaced_logits": "logits"}
    ),
    "electra classifying": classification("Electra", FACTORISED),
    "distilbert": masked_language_model("DistilBert", DISTILBERT),
    "distilbert classifying": classification("DistilBert", DISTILBERT),
    "modernbert": masked_language_model("ModernBert", MODERNBERT),
    "roformer": masked_language_model("RoFormer", FACTORISED),
    "roformer without factorisation": masked_language_model("RoFormer", TINY),
    "roformer classifying": classification("RoFormer", FACTORISED),
}


def rows(config):
    """Token ids, segments and which tokens are real, of rows of different length."""
    rng = np.random.default_rng(0)
    real = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = np.where(real, rng.integers(3, VOCABULARY, real.shape), config.pad_token_id)
    segments = rng.integers(0, 2, ids.shape) * real if getattr(config, "type_vocab_size", 0) > 1 else None
    return ids, segments, real


def their_model(case):
    """A model of theirs whose every parameter has noise: zero biases would hide mistakes."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.stem}Config")(**case.options)
    config._attn_implementation = "eager"
    model = getattr(transformers, case.stem + case.class_suffix)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # the others are tables of sines
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@functools.cache
def both(case):
    """Runs a model of theirs and ours with its weights.

    Returns:
        their configuration, our outputs and theirs (padding zeroed), our gradients and theirs.
    """
    model = their_model(case)
    ids, segments, real = rows(model.config)
    below = {}  # what the encoder returns, and its pooler
    model.base_model.register_forward_hook(lambda module, arguments, result: below.update(result))
    kinds = {} if segments is None else {"token_type_ids": torch.tensor(segments)}
    answer = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(real.astype(int)), **kinds)
    theirs = {"hidden": below["last_hidden_state"]}
    theirs |= {ours: (below if name == "pooler_output" else answer)[name] for ours, name in case.outputs.items()}

    rng = np.random.default_rng(1)
    seen = {}
    for name, output in theirs.items():
        per_token = name in ("hidden", "token_logits", "replaced_logits")
        there = real.reshape(real.shape + (1,) * (output.ndim - 2)) if per_token else 1.0
        seen[name] = (rng.normal(size=tuple(output.shape)) * there).astype(np.float32)
    sum((output * torch.tensor(seen[name])).sum() for name, output in theirs.items()).backward()
    tensors = model.state_dict(keep_vars=True)
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    their_gradients = {name: tensor.grad.numpy() for name, tensor in tensors.items() if tensor.grad is not None}

    config = model.config.to_dict()
    labels = range(model.config.num_labels) if "classifier" in case.heads else ()
    mine, taken = model_with_weights(config, arrays, case.heads, labels)
    used = {id(tensors[name]) for name in taken}  # tied tensors are one under two names
    unused = [name for name, tensor in model.named_parameters() if tensor.requires_grad and id(tensor) not in used]
    assert unused == []
    inputs = {"token_ids": ids.astype(np.int32)}
    if segments is not None:
        inputs["segment_ids"] = segments.astype(np.int32)
    ours, gradients = outputs_and_gradients(mine, inputs, seen)
    shown = {name: weights != 0 for name, weights in seen.items()}
    theirs = {name: output.detach().numpy() * shown[name] for name, output in theirs.items()}
    ours = {name: ours[name] * shown[name] for name in theirs}
    return config, ours, theirs, gradients, their_gradients


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_hugging_face(name):
    _, ours, theirs, _, _ = both(CASES[name])
    assert set(theirs) == {"hidden", *CASES[name].outputs}
    for output, expected in theirs.items():
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(ours[output], expected, atol=1e-5, err_msg=output)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_all_parameters_are_those_of_hugging_face(name):
    config, _, _, ours, theirs = both(CASES[name])
    expect_equal_gradients(config, CASES[name].heads, ours, theirs)


@pytest.mark.parametrize(
    "change",
    [{"attention_window": None}, {"attention_window": 3}, {"global_every": 5}, {"local_rotary_base": None}],
    ids=str,
)
def test_local_and_global_layers_and_their_rotations_all_matter_in_the_comparison_with_modernbert(change):
    case = CASES["modernbert"]
    model = their_model(case)
    arrays = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    ids, _, real = rows(model.config)
    mine, _ = model_with_weights(model.config.to_dict(), arrays, case.heads)
    altered = type(mine)(dataclasses.replace(mine.config, **change), VOCABULARY, heads=case.heads)
    altered.build()
    altered.set_weights(mine.get_weights())
    hidden, other = (keras.ops.convert_to_numpy(m(ids.astype(np.int32))["hidden"])[real] for m in (mine, altered))
    assert np.abs(hidden - other).max() > 1e-3


def test_every_model_type_that_weights_come_in_is_compared():
    compared = {getattr(transformers, f"{case.stem}Config").model_type for case in CASES.values()}
    assert compared | {"nezha"} == set(hugging_face.SCHEMES)  # NEZHA: test_architectures_by_formula.py
