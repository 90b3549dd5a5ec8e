"""Manifests: what a prepared data set holds, shard by shard, and how to tell that it is whole."""

import dataclasses

from trainer import storage
from trainer.data.records import RowFormat
from trainer.errors import InputError

MANIFEST_NAME = "manifest.json"
FORMAT_NAME = "bert-trainer rows"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        name: file name inside the data set's folder.
        rows: number of records.
        bytes: size of the file.
        crc32c: CRC-32C of the file, eight hexadecimal digits.
        salt: 32-bit number that goes into every row's hash.
    """

    name: str
    rows: int
    bytes: int
    crc32c: str
    salt: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A prepared data set.

    Attributes:
        fingerprint: SHA-256 of everything that decides the content: settings, vocabulary, corpus identity.
        sequence_length: tokens in a row.
        id_bytes: bytes of a stored token id.
        packing: `full_sentences`, `sentence_pair_nsp` or `sentence_pair_sop`.
        vocabulary: file name of the vocabulary inside the folder, one piece a line.
        vocabulary_size: number of pieces.
        vocabulary_sha256: SHA-256 of the vocabulary file.
        lower_case: whether text was lower-cased and stripped of accents.
        compression: `None` or `GZIP`.
        splits: `{"train": (Shard, ...), "held_out": (Shard, ...)}`.
        summary: numbers for people: documents, tokens, padding share, ...
    """

    fingerprint: str
    sequence_length: int
    id_bytes: int
    packing: str
    vocabulary: str
    vocabulary_size: int
    vocabulary_sha256: str
    lower_case: bool
    compression: str | None
    splits: dict
    summary: dict = dataclasses.field(default_factory=dict)

    @property
    def row_format(self):
        """The layout of the records."""
        return RowFormat(self.sequence_length, self.id_bytes)

    def rows(self, split):
        """Returns the number of rows in a split."""
        return sum(shard.rows for shard in self.splits[split])

    def save(self, folder):
        """Writes `manifest.json`; the last act of making a data set."""
        content = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION} | dataclasses.asdict(self)
        storage.write_json(storage.join(folder, MANIFEST_NAME), content)


def load_manifest(folder):
    """Reads the manifest of a prepared data set.

    Raises:
        InputError: if there is none, or it is damaged or of another version.
    """
    path = storage.join(folder, MANIFEST_NAME)
    if not storage.exists(path):
        raise InputError(
            f"{folder} holds no prepared data: {MANIFEST_NAME} is missing. "
            "Make it with `python -m tools.prepare_data --output FOLDER ...`; if it was interrupted, run it again."
        )
    try:
        content = storage.read_json(path)
        name, version = content.pop("format"), content.pop("format_version")
        if (name, version) != (FORMAT_NAME, FORMAT_VERSION):
            raise InputError(
                f"{path} is of format {name!r} version {version}; this program reads {FORMAT_NAME!r} version "
                f"{FORMAT_VERSION}. Prepare the data again."
            )
        content["splits"] = {
            split: tuple(Shard(**shard) for shard in shards) for split, shards in content["splits"].items()
        }
        return Manifest(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}). Prepare the data again.") from error


def verify_data_set(folder, manifest, *, checksums):
    """Compares a folder with its manifest.

    Args:
        folder: path of the data set.
        manifest: its `Manifest`.
        checksums: whether to read every shard and compare its CRC-32C, or only look at names and sizes.

    Raises:
        InputError: naming the first shard that is missing, extra, of another size or altered.
    """
    there = set(storage.listing(folder))
    known = set()
    for shards in manifest.splits.values():
        for shard in shards:
            known.add(shard.name)
            path = storage.join(folder, shard.name)
            if shard.name not in there:
                raise InputError(
                    f"shard {path} is missing: the manifest names it. Copy it again or prepare the data again."
                )
            actual = storage.size(path)
            if actual != shard.bytes:
                raise InputError(
                    f"shard {path} has {actual:,} bytes where the manifest says {shard.bytes:,}: it is "
                    f"{'truncated' if actual < shard.bytes else 'not the file that was prepared'}. Copy it again."
                )
            if checksums and (found := storage.file_checksum(path)) != shard.crc32c:
                raise InputError(
                    f"shard {path} is altered: its CRC-32C is {found}, the manifest says {shard.crc32c}. Copy it again."
                )
    extra = sorted(name for name in there - known if ".tfrecord" in name and ".tmp-" not in name)
    if extra:
        raise InputError(
            f"{folder} holds {extra[0]}, which its manifest does not name"
            + (f" (and {len(extra) - 1} more)" if len(extra) > 1 else "")
            + ". It may belong to another preparation: remove it or prepare into an empty folder."
        )
