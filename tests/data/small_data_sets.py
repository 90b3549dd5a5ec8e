"""Small prepared data sets with known content, for tests of reading."""

import dataclasses
import gzip
import hashlib
import os

import numpy as np

from trainer import storage
from trainer.data.manifests import Manifest, Shard
from trainer.data.records import NO_LABEL, RowFormat, encode_rows, frame_records


def random_rows(rng, num_rows, length, vocabulary_size):
    """Returns the arguments of `encode_rows` between the format and the salt: random, but possible, rows."""
    num_tokens = rng.integers(1, length + 1, num_rows)
    inside = np.arange(length) < num_tokens[:, None]
    starts = (rng.random((num_rows, length)) < 0.2) & inside
    starts[:, 0] = True
    return (
        rng.integers(1, vocabulary_size, (num_rows, length)) * inside,
        rng.integers(0, 2, (num_rows, length)) * inside,
        starts,
        rng.choice([0, 1, NO_LABEL], num_rows),
        num_tokens,
    )


def write_data_set(
    folder, shard_rows, *, held_out_rows=(), length=8, vocabulary_size=100, gzipped=False, first_id=0, seed=0
):
    """Writes a data set and returns its manifest.

    Args:
        folder: where; is made.
        shard_rows: rows of each training shard.
        held_out_rows: rows of each held-out shard.
        first_id: rows carry consecutive numbers from here on in their first two tokens, see `row_numbers`.
    """
    rng = np.random.default_rng(seed)
    os.makedirs(folder, exist_ok=True)
    vocabulary = "".join(f"piece{number}\n" for number in range(vocabulary_size)).encode()
    storage.write_bytes(storage.join(folder, "vocab.txt"), vocabulary)
    row_format = RowFormat.for_vocabulary(length, vocabulary_size)
    splits, number = {}, first_id
    for split, sizes in (("train", shard_rows), ("held_out", held_out_rows)):
        shards = []
        for index, rows in enumerate(sizes):
            token_ids, *others, num_tokens = random_rows(rng, rows, length, vocabulary_size)
            numbers = np.arange(number, number + rows)
            token_ids[:, 0], token_ids[:, 1] = numbers % vocabulary_size, numbers // vocabulary_size
            num_tokens = np.maximum(num_tokens, 2)
            number += rows
            salt = int(rng.integers(1 << 32))
            content = frame_records(encode_rows(row_format, token_ids, *others, num_tokens, salt=salt, first_row=0))
            content = gzip.compress(content, mtime=0) if gzipped else content
            name = f"{split}-{index:05d}.tfrecord" + (".gz" if gzipped else "")
            storage.write_bytes(storage.join(folder, name), content)
            shards.append(Shard(name, rows, len(content), storage.checksum(content), salt))
        splits[split] = tuple(shards)
    manifest = Manifest(
        fingerprint=f"test {seed}",
        sequence_length=length,
        id_bytes=row_format.id_bytes,
        packing="full_sentences",
        vocabulary="vocab.txt",
        vocabulary_size=vocabulary_size,
        vocabulary_sha256=hashlib.sha256(vocabulary).hexdigest(),
        lower_case=True,
        compression="GZIP" if gzipped else None,
        splits=splits,
    )
    manifest.save(folder)
    return manifest


def row_numbers(token_ids, vocabulary_size=100):
    """Returns the numbers that `write_data_set` put into rows."""
    token_ids = np.asarray(token_ids)
    return token_ids[..., 0] + token_ids[..., 1] * vocabulary_size


def change_manifest(folder, manifest, **changes):
    """Writes a manifest that differs in some fields, and returns it."""
    changed = dataclasses.replace(manifest, **changes)
    changed.save(folder)
    return changed
