"""What a model costs by formula is what the graph of its step holds."""

import math

import pytest
import tensorflow as tf

from trainer import randomness
from trainer.models.architecture import EncoderConfig
from trainer.models.costs import activation_bytes, forward_flops, training_flops
from trainer.tasks.pretraining import PretrainingModel

VOCABULARY = 50
OPTIONS = {
    "bert": {},
    "factorised": {"embedding_size": 8},
    "factorised without a layer before the output": {"embedding_size": 12, "prediction_transform": False},
    "shared": {"share_layers": True, "embedding_size": 8},
    "gated": {"gated": True},
    "rotary": {"positions": "rotary"},
    "relative": {"positions": "relative"},
    "local": {"attention_window": 2},
    "before": {"norm_placement": "before", "gated": True, "use_bias": False, "norm_bias": False},
    "rms": {"normalization": "rms", "norm_scale": False, "use_bias": False},
    "hierarchical": {"max_length": 4, "hierarchical_alpha": 0.4},
    "one layer": {"num_layers": 1},
}


def graph_of_forward_pass(config, batch, length, predictions):
    model = PretrainingModel(config, VOCABULARY, pairs=False, seed=1)
    model.build()
    rows = tf.TensorSpec([batch, length], tf.int32)
    positions = tf.TensorSpec([batch, predictions], tf.int32)
    return tf.function(model.call).get_concrete_function(rows, rows, rows, positions).graph


def products(operation):
    """The multiplications and additions of an operation of a graph."""
    if operation.type == "Einsum":
        terms, _ = operation.get_attr("equation").decode().split("->")
        sizes = {}
        for term, tensor in zip(terms.split(","), operation.inputs, strict=True):
            sizes |= dict(zip(term, tensor.shape, strict=True))
        return 2 * math.prod(sizes.values())
    if operation.type in ("MatMul", "BatchMatMulV2"):
        transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
        contracted = operation.inputs[0].shape[-2 if transposed else -1]
        return 2 * contracted * operation.outputs[0].shape.num_elements()
    return 0


@pytest.mark.parametrize("name", OPTIONS)
def test_the_cost_formula_counts_the_products_of_the_graph(name):
    sizes = {"hidden_size": 12, "num_layers": 3, "num_heads": 3, "intermediate_size": 20, "max_length": 16}
    config = EncoderConfig(**sizes | OPTIONS[name])
    length, predictions, batch = 16, 3, 2
    graph = graph_of_forward_pass(config, batch, length, predictions)
    counted = sum(products(operation) for operation in graph.get_operations())
    row = {"length": length, "predictions": predictions, "vocabulary_size": VOCABULARY}
    encoder, head = forward_flops(config, **row)
    assert counted == batch * (encoder + head)
    # The backward pass takes twice the forward pass.
    assert training_flops(config, **row) == 3 * (encoder + head)


def bytes_kept(config, batch, length, predictions):
    """The bytes, for each row, of what the backward pass reads of the forward pass, other than weights."""
    model = PretrainingModel(config, VOCABULARY, pairs=False, seed=1)
    model.build()
    rows = tf.TensorSpec([batch, length], tf.int32)
    words = tf.TensorSpec([batch], tf.uint32)
    variables = [variable.value for variable in model.trainable_variables]
    forward = []

    @tf.function
    def gradients(token_ids, segment_ids, document_ids, positions, start, increment):
        with tf.GradientTape() as tape:
            keys = randomness.Keys(start, increment)
            tokens, _ = model(token_ids, segment_ids, document_ids, positions, keys=keys)
            loss = tf.reduce_sum(tokens**2)
        forward.extend(tf.compat.v1.get_default_graph().get_operations())
        return tape.gradient(loss, variables)

    positions = tf.TensorSpec([batch, predictions], tf.int32)
    graph = gradients.get_concrete_function(rows, rows, rows, positions, words, words).graph
    before, kept = set(forward), {}
    for operation in graph.get_operations()[len(forward) :]:
        for tensor in operation.inputs:
            while tensor.op.type in ("Reshape", "Identity", "Cast") and tensor.op in before:
                tensor = tensor.op.inputs[0]
            a_weight = tensor.op.type in ("ReadVariableOp", "Const", "Placeholder", "Transpose")
            if tensor.op in before and not a_weight and tensor.shape.is_fully_defined() and tensor.shape.rank > 1:
                kept[tensor.ref()] = tensor.shape.num_elements() * tensor.dtype.size
    return sum(kept.values()) / batch


@pytest.mark.parametrize("name", ["bert", "shared", "gated", "rotary", "relative", "before"])
def test_activations_are_estimated_to_a_third_of_what_the_backward_pass_reads(name):
    sizes = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "intermediate_size": 256, "max_length": 64}
    config = EncoderConfig(**sizes | OPTIONS[name])
    kept = bytes_kept(config, batch=2, length=64, predictions=10)
    row = {"length": 64, "predictions": 10, "vocabulary_size": VOCABULARY, "compute_bytes": 4}
    assert 2 / 3 < kept / activation_bytes(config, **row) < 4 / 3
