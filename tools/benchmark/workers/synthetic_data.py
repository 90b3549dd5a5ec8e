"""Prepared data of random tokens: what `tools.prepare_data` would write, made in seconds."""

import hashlib

import numpy as np

from tools.benchmark.peers import protocol

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NUM_SHARDS = 8


def write_data_set(folder, *, rows, length, vocabulary_size):
    """Writes a data set of full rows, in eight shards and without held-out rows.

    Args:
        folder: where; is made.
        rows: number of rows.
        length: tokens in a row.
        vocabulary_size: number of token ids.

    Returns:
        the paths of the shards.
    """
    from trainer import storage
    from trainer.data.manifests import Manifest, Shard
    from trainer.data.records import NO_LABEL, RowFormat, encode_rows, frame_records

    storage.make_folder(folder)
    pieces = [*_SPECIAL_TOKENS, *(f"piece{number}" for number in range(vocabulary_size - len(_SPECIAL_TOKENS)))]
    vocabulary = "".join(f"{piece}\n" for piece in pieces).encode()
    storage.write_bytes(storage.join(folder, "vocab.txt"), vocabulary)
    row_format = RowFormat.for_vocabulary(length, vocabulary_size)
    generator = np.random.default_rng(0)
    shards, paths = [], []
    for number in range(_NUM_SHARDS):
        count = rows // _NUM_SHARDS + (number < rows % _NUM_SHARDS)
        starts = np.zeros((count, length), bool)
        starts[:, 0] = True
        records = encode_rows(
            row_format,
            generator.integers(len(_SPECIAL_TOKENS), vocabulary_size, (count, length)),
            np.zeros((count, length), "int32"),
            starts,
            np.full(count, NO_LABEL),
            np.full(count, length),
            salt=number,
            first_row=0,
        )
        content = frame_records(records)
        name = f"train-{number:05d}.tfrecord"
        paths.append(storage.join(folder, name))
        storage.write_bytes(paths[-1], content)
        shards.append(Shard(name, count, len(content), storage.checksum(content), number))
    Manifest(
        fingerprint=f"benchmark {rows} {length} {vocabulary_size}",
        sequence_length=length,
        id_bytes=row_format.id_bytes,
        packing="full_sentences",
        vocabulary="vocab.txt",
        vocabulary_size=vocabulary_size,
        vocabulary_sha256=hashlib.sha256(vocabulary).hexdigest(),
        lower_case=True,
        compression=None,
        splits={"train": tuple(shards), "held_out": ()},
    ).save(folder)
    return paths


def prepare(settings):
    """See `protocol.serve`: writes the data set and has nothing else to do."""
    write_data_set(**settings)
    return {}, {}


if __name__ == "__main__":
    protocol.serve(prepare)
