"""What a checkpoint holds: the variables of a run in the format of `tf.train.Checkpoint`."""

import os
from concurrent import futures

import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from trainer.errors import InputError, StorageFailed

PREFIX = "weights"
VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Copying is bound by memory and by the first touch of new pages; more threads than this do not help.
_COPY_THREADS = 4


def flatten(variables):
    """Flattens nested dicts of variables.

    Args:
        variables: nested dict of names -> `tf.Variable` or `keras.Variable`; a `/` in a name nests as well.

    Returns:
        Dict of full name such as `weights/encoder/kernel` -> the TensorFlow variable, in sorted order.

    Raises:
        ValueError: if two names are equal, or a variable has a value of its own on every replica.
    """
    flat = {}

    def visit(path, value):
        if isinstance(value, dict):
            for name, child in value.items():
                visit([*path, *(part for part in str(name).split("/") if part)], child)
            return
        name = "/".join(path)
        if name in flat:
            raise ValueError(f"two variables have the name {name!r} in the checkpoint")
        variable = value if isinstance(value, tf.Variable | tf.distribute.DistributedValues) else value.value
        replicated = isinstance(variable, tf.distribute.DistributedValues)
        if replicated and variable.synchronization == tf.VariableSynchronization.ON_READ:
            raise ValueError(f"variable {name!r} has another value on every replica; only mirrored ones can be saved")
        flat[name] = variable

    visit([], variables)
    return dict(sorted(flat.items()))


def _primary(variable):
    return variable.values[0] if isinstance(variable, tf.distribute.DistributedValues) else variable


def copy_to_host(variables):
    """Copies variables to host memory, so that training may change them at once.

    Args:
        variables: dict of names -> TensorFlow variables.

    Returns:
        Dict of names -> tensors on the CPU that share no memory with the variables.
    """

    def copy(variable):
        value = _primary(variable).read_value()
        on_host = tf.DeviceSpec.from_string(value.device).device_type == "CPU"
        with tf.device("CPU:0"):
            # Reading a variable that lies on the host only shares its memory.
            return tf.raw_ops.DeepCopy(x=value) if on_host else tf.identity(value)

    with futures.ThreadPoolExecutor(min(_COPY_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(variables, pool.map(copy, variables.values()), strict=True))


def write(prefix, tensors):
    """Writes tensors as one checkpoint that `tf.train.load_checkpoint` and `tf.train.Checkpoint.read` understand.

    Args:
        prefix: local path without suffix.
        tensors: dict of names -> tensors on the CPU.

    Raises:
        tf.errors.OpError: if writing fails.
        StorageFailed: if the file came out too short.
    """
    with tf.device("CPU:0"):
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=[*(name + VALUE_SUFFIX for name in tensors), _OBJECT_GRAPH_KEY],
            shape_and_slices=[""] * (len(tensors) + 1),
            tensors=[*tensors.values(), tf.constant(_object_graph(tensors))],
        )
    data_path = f"{prefix}.data-00000-of-00001"
    expected = sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors.values())
    if (size := os.path.getsize(data_path)) < expected:
        raise StorageFailed(f"{data_path} has {size:,} bytes where {expected:,} were written: is the disk full?")


def _object_graph(names):
    """Returns the serialized description by which `tf.train.Checkpoint` finds variables: a tree of the names' parts."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.nodes.add()
    index = {(): 0}
    for name in names:
        path = tuple(name.split("/"))
        for depth in range(1, len(path) + 1):
            if path[:depth] not in index:
                index[path[:depth]] = len(graph.nodes)
                graph.nodes.add()
                child = graph.nodes[index[path[: depth - 1]]].children.add()
                child.node_id, child.local_name = index[path[:depth]], path[depth - 1]
        node = graph.nodes[index[path]]
        node.has_checkpoint_values.value = True
        node.attributes.add(name="VARIABLE_VALUE", full_name=name, checkpoint_key=name + VALUE_SUFFIX)
    return graph.SerializeToString()


def read_into(variables, prefix, others_allowed=False):
    """Assigns the values of a checkpoint to variables; on every replica, however many there are.

    All names, shapes and types are compared before the first variable changes.

    Args:
        variables: dict of names -> TensorFlow variables.
        prefix: path of the checkpoint without suffix.
        others_allowed: whether the checkpoint may hold more variables than these.

    Raises:
        InputError: naming the first variable that does not match.
    """
    reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    shapes = reader.get_variable_to_shape_map()
    types = reader.get_variable_to_dtype_map()
    there = {key.removesuffix(VALUE_SUFFIX) for key in shapes if key != _OBJECT_GRAPH_KEY}

    def refuse(problem):
        raise InputError(
            f"the checkpoint {os.path.dirname(prefix)} does not fit this model: {problem}. Probably it was made with "
            "another model, optimizer or number format: use the configuration it was made with, or another --run_dir."
        )

    if missing := [name for name in variables if name not in there]:
        refuse(f"it holds no variable {missing[0]!r}" + _and_more(missing))
    if not others_allowed and (extra := sorted(there - set(variables))):
        refuse(f"it holds the variable {extra[0]!r}{_and_more(extra)}, which the model lacks")
    for name, variable in variables.items():
        shape, dtype = tuple(shapes[name + VALUE_SUFFIX]), types[name + VALUE_SUFFIX]
        if shape != tuple(variable.shape):
            refuse(f"variable {name!r} has shape {shape} in the checkpoint and {tuple(variable.shape)} in the model")
        if dtype != variable.dtype:
            refuse(f"variable {name!r} is {dtype.name} in the checkpoint and {variable.dtype.name} in the model")
    for name, variable in variables.items():
        variable.assign(tf.constant(reader.get_tensor(name + VALUE_SUFFIX), variable.dtype))


def _and_more(names):
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
