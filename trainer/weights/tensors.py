"""Tensors in files, read one at a time: safetensors, TensorFlow checkpoints, and PyTorch's files by its safe reader."""

import abc
import contextlib
import json
import math
import os
import shlex
import struct
import tempfile
import threading
import weakref

import ml_dtypes
import numpy as np
import tensorflow as tf

from trainer import storage
from trainer.errors import InputError, StorageFailed

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
    """Named tensors that are read when they are asked for, also by several threads at once.

    Attributes:
        shapes: `{name: tuple}` of all of them.
        types: `{name: type}` as NumPy calls it, of those in files of other libraries.
    """

    shapes: dict
    types: dict

    @abc.abstractmethod
    def read(self, name):
        """Returns a tensor as a NumPy array."""


class SafetensorsFiles(Tensors):
    """The tensors of one or several safetensors files (https://github.com/huggingface/safetensors).

    Args:
        paths: of the files.

    Raises:
        InputError: naming the file that is not whole.
    """

    def __init__(self, paths):
        self.shapes, self.types, self._places = {}, {}, {}
        self._paths, self._copies, self._one_at_a_time = list(paths), None, threading.Lock()
        for path in paths:
            header, start = _safetensors_header(path)
            end = storage.size(path)
            for name, entry in header.items():
                if name != "__metadata__":
                    self._add(path, name, entry, start, end)

    def _add(self, path, name, entry, start, end):
        try:
            dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
            first, last = (start + offset for offset in entry["data_offsets"])
            fits = start <= first <= last <= end and last - first == math.prod(shape) * dtype.itemsize
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path} is damaged, or of an unknown kind: it describes {name!r} by {entry}") from None
        if not fits:
            raise InputError(f"{path} is truncated or damaged: tensor {name!r} does not fit into its {end:,} bytes")
        if name in self.shapes:
            raise InputError(f"{path} holds the tensor {name!r}, which another file holds, too")
        self.shapes[name], self.types[name] = shape, dtype.name
        self._places[name] = (path, first, last - first, dtype)

    def _local(self, path):
        """Returns where a file lies on this machine; files in object stores are copied when the first is wanted."""
        with self._one_at_a_time:
            if self._copies is None:
                copies = contextlib.ExitStack()
                weakref.finalize(self, copies.close)
                local = copies.enter_context(storage.local_copies(self._paths))
                self._copies = dict(zip(self._paths, local, strict=True))
            return self._copies[path]

    def read(self, name):
        path, first, size, dtype = self._places[name]
        # A mapping into memory would be slower, and its pages count as the program's.
        data = np.fromfile(self._local(path), np.uint8, size, offset=first)
        if len(data) != size:
            raise InputError(f"{path} is truncated: tensor {name!r} has {len(data):,} of {size:,} bytes")
        return data.view(dtype).reshape(self.shapes[name])


def _safetensors_header(path):
    """Returns the parsed header of a safetensors file and the byte at which tensors begin; reads no more than that."""
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


def is_hdf5(path):
    """Returns whether a file is HDF5, by its first bytes."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


class CheckpointTensors(Tensors):
    """The tensors of a TensorFlow checkpoint, of version 1 or 2.

    Args:
        prefix: its path without `.index`.

    Raises:
        InputError: if it cannot be read.
    """

    def __init__(self, prefix):
        try:
            self._reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        except (tf.errors.OpError, ValueError) as error:
            raise InputError(f"{prefix} is not a TensorFlow checkpoint, or is damaged: {error}") from None
        self.prefix = prefix
        self._one_at_a_time = threading.Lock()  # as the reader is made for
        types = self._reader.get_variable_to_dtype_map()
        self.types = {name: kind.name for name, kind in types.items()}
        self.shapes = {name: tuple(shape) for name, shape in self._reader.get_variable_to_shape_map().items()}
        if storage.exists(f"{prefix}.index"):
            self._check_size(sum(math.prod(shape) * types[name].size for name, shape in self.shapes.items()))

    def _check_size(self, least):
        folder, _, stem = self.prefix.rpartition("/")
        parts = [name for name in storage.listing(folder or ".") if name.startswith(f"{stem}.data-")]
        size = sum(storage.size(storage.join(folder or ".", name)) for name in parts)
        if size < least:
            raise InputError(f"{self.prefix} is truncated: its data files have {size:,} bytes, its tensors {least:,}")

    def read(self, name):
        try:
            with self._one_at_a_time:
                return self._reader.get_tensor(name)
        except (tf.errors.OpError, RuntimeError) as error:
            raise InputError(f"{self.prefix} is damaged: tensor {name!r} cannot be read: {error}") from None


class TorchFiles(Tensors):
    """The tensors of files of PyTorch's, which are pickles: only PyTorch's weights-only reader is let near them.

    Args:
        paths: of the files.

    Raises:
        InputError: if PyTorch is not installed, or a file holds anything but tensors.
    """

    def __init__(self, paths):
        try:
            import torch
        except ModuleNotFoundError:
            raise InputError(
                f"{paths[0]} is a pickle, which could run any program; reading its tensors alone takes PyTorch, which is "
                f"not installed. Install it, or convert it with a Python that has it, and safetensors:\n  {_command(paths)}"
            ) from None
        self._torch, self._tensors = torch, {}
        for path in paths:
            self._tensors |= self._load(path)
        self.shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}
        self.types = {name: str(value.dtype).removeprefix("torch.") for name, value in self._tensors.items()}

    def _load(self, path):
        """Returns `{name: tensor}`."""
        if storage.is_remote(path):
            with tempfile.TemporaryDirectory(prefix="torch-") as folder:
                local = os.path.join(folder, "file")
                storage.copy_file(path, local)
                content = self._read_pickle(path, local, mmap=False)
        else:
            content = self._read_pickle(path, path, mmap=True)
        if not isinstance(content, dict):
            raise InputError(f"{path} holds no named tensors, but a {type(content).__name__}")
        tensors = {name: value for name, value in content.items() if isinstance(value, self._torch.Tensor)}
        if not tensors:
            raise InputError(f"{path} holds no named tensors; it holds {', '.join(map(str, list(content)[:5]))}")
        if nameless := [name for name in tensors if not isinstance(name, str)]:
            raise InputError(f"{path} holds a tensor whose name is {nameless[0]!r}, no text")
        return tensors

    def _read_pickle(self, path, local, mmap):
        try:
            return self._torch.load(local, weights_only=True, map_location="cpu", mmap=mmap)
        except Exception as error:  # among others one that says that files of before PyTorch 1.6 cannot be mapped
            if mmap:
                return self._read_pickle(path, local, mmap=False)
            raise InputError(f"{path} cannot be read as tensors alone: {error}") from None

    def read(self, name):
        value = self._tensors[name].detach()
        if value.dtype == self._torch.bfloat16:
            return value.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()


def _command(paths):
    """Returns the command line that makes `model.safetensors` of files of PyTorch's, beside them."""
    target = storage.join(paths[0].rpartition("/")[0] or ".", "model.safetensors")
    program = (
        "import torch, safetensors.torch as s; "
        f"tensors = {{k: v.contiguous().clone() for path in {list(paths)!r} "
        'for k, v in torch.load(path, weights_only=True, map_location="cpu").items()}; '
        f"s.save_file(tensors, {target!r})"
    )
    return f"python -c {shlex.quote(program)}"


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


def write_checkpoint(prefix, tensors):
    """Writes a TensorFlow checkpoint with plain names, as TensorFlow 1 did.

    Args:
        prefix: path without suffix, local or `gs://`.
        tensors: `{name: tensor on the CPU}`.

    Raises:
        StorageFailed: if writing fails.
    """
    try:
        with tf.device("CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=list(tensors),
                shape_and_slices=[""] * len(tensors),
                tensors=list(tensors.values()),
            )
    except tf.errors.OpError as error:
        raise StorageFailed(f"cannot write {prefix}: {error.message}") from error
