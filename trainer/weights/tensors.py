"""Tensors in files, read one at a time: safetensors, TensorFlow checkpoints, and PyTorch's files by its safe reader."""

import abc
import json
import math
import struct

import ml_dtypes
import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.errors import InputError

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
_LARGEST_HEADER_BYTES = 100_000_000  # what the library of the format allows


class Tensors(abc.ABC):
    """Named tensors that are read when they are asked for.

    Attributes:
        shapes: `{name: tuple}` of all of them.
    """

    shapes: dict

    @abc.abstractmethod
    def read(self, name):
        """Returns a tensor as a NumPy array."""


class SafetensorsFiles(Tensors):
    """The tensors of one or several safetensors files (https://github.com/huggingface/safetensors).

    A local file is mapped into memory, so that only what is read takes any; of another the bytes of each tensor are read.

    Args:
        paths: of the files.

    Raises:
        InputError: naming the file that is not whole.
    """

    def __init__(self, paths):
        self.shapes, self._places = {}, {}
        for path in paths:
            header, start = _safetensors_header(path)
            content = None if storage.is_remote(path) else np.memmap(path, np.uint8, "r")
            end = storage.size(path)
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                self._add(path, name, entry, start, end, content)

    def _add(self, path, name, entry, start, end, content):
        try:
            dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
            first, last = (start + offset for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path} is damaged, or of an unknown kind: it describes {name!r} by {entry}") from None
        if not start <= first <= last <= end or last - first != math.prod(shape) * dtype.itemsize:
            raise InputError(f"{path} is truncated or damaged: tensor {name!r} does not fit into its {end:,} bytes")
        self.shapes[name] = shape
        self._places[name] = (path, content, first, last, dtype)

    def read(self, name):
        path, content, first, last, dtype = self._places[name]
        if content is not None:
            data = content[first:last]
        else:
            with tf.io.gfile.GFile(path, "rb") as file:
                file.seek(first)
                data = np.frombuffer(file.read(last - first), np.uint8)
            if len(data) != last - first:
                raise InputError(f"{path} is truncated: tensor {name!r} has {len(data):,} of {last - first:,} bytes")
        return data.view(dtype).reshape(self.shapes[name])


def _safetensors_header(path):
    """Returns the parsed header of a safetensors file and the byte at which tensors begin."""
    with tf.io.gfile.GFile(path, "rb") as file:
        length = file.read(8)
        size = struct.unpack("<Q", length)[0] if len(length) == 8 else _LARGEST_HEADER_BYTES + 1
        text = file.read(size) if size <= _LARGEST_HEADER_BYTES else b""
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict) or len(text) != size:
        raise InputError(f"{path} is not a safetensors file, or is truncated")
    return header, 8 + size


class CheckpointTensors(Tensors):
    """The tensors of a TensorFlow checkpoint, of version 1 or 2.

    Args:
        prefix: its path without `.index`.

    Raises:
        InputError: if it cannot be read.
    """

    def __init__(self, prefix):
        try:
            self._reader = tf.train.load_checkpoint(prefix)
        except (tf.errors.OpError, ValueError) as error:
            raise InputError(f"{prefix} is not a TensorFlow checkpoint, or is damaged: {error}") from None
        self.prefix = prefix
        self.shapes = {name: tuple(shape) for name, shape in self._reader.get_variable_to_shape_map().items()}

    def read(self, name):
        try:
            return self._reader.get_tensor(name)
        except tf.errors.OpError as error:
            raise InputError(f"{self.prefix} is damaged: tensor {name!r} cannot be read: {error.message}") from None


class TorchFile(Tensors):
    """The tensors of a file of PyTorch's, which is a pickle: only PyTorch's weights-only reader is let near it.

    Args:
        path: of the file.

    Raises:
        InputError: if PyTorch is not installed, or the file holds anything but tensors.
    """

    def __init__(self, path):
        try:
            import torch
        except ModuleNotFoundError:
            raise InputError(
                f"{path} is a pickle, which could run any program; reading its tensors alone takes PyTorch, which is not "
                "installed. Install it, or convert the file where it is:\n"
                f"  python -c 'import torch, safetensors.torch as s; s.save_file({{k: v.contiguous().clone() for k, v in "
                f'torch.load("{path}", weights_only=True, map_location="cpu").items()}}, "model.safetensors")\''
            ) from None
        try:
            self._tensors = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        except (OSError, RuntimeError, ValueError) as first:
            try:  # files of before PyTorch 1.6 cannot be mapped into memory
                self._tensors = torch.load(path, weights_only=True, map_location="cpu")
            except Exception as error:
                raise InputError(f"{path} cannot be read as tensors alone: {error or first}") from None
        except Exception as error:  # an unpickling error: what it holds is not tensors
            raise InputError(f"{path} cannot be read as tensors alone: {error}") from None
        self._tensors = {name: value for name, value in self._tensors.items() if isinstance(value, torch.Tensor)}
        self._torch = torch
        self.shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}

    def read(self, name):
        value = self._tensors[name].detach()
        if value.dtype == self._torch.bfloat16:
            return value.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()


def write_safetensors(path, tensors, metadata=None):
    """Writes a safetensors file, tensor by tensor, atomically.

    Args:
        path: of the file.
        tensors: list of (name, dtype, shape, function that returns the array); only one array is alive at a time.
        metadata: dict of texts for the header.

    Raises:
        StorageFailed: if writing fails.
    """
    names = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}
    header, offset = {"__metadata__": metadata or {}}, 0
    for name, dtype, shape, _ in tensors:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": names[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors to begin at a multiple of eight
    with storage.atomic_writer(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name, dtype, shape, make in tensors:
            array = np.ascontiguousarray(make(), dtype)
            assert array.shape == tuple(shape), f"{name} has shape {array.shape}, {tuple(shape)} was announced"
            file.write(array.tobytes() if storage.is_remote(path) else array.data)


def write_checkpoint(prefix, arrays):
    """Writes a TensorFlow checkpoint with plain names, as TensorFlow 1 did.

    Args:
        prefix: path without suffix, local or `gs://`.
        arrays: `{name: NumPy array}`.
    """
    with tf.device("CPU:0"):
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=list(arrays),
            shape_and_slices=[""] * len(arrays),
            tensors=[tf.constant(array) for array in arrays.values()],
        )
