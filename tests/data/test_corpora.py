"""What is found out about data before training."""

import pytest
from small_data_sets import change_manifest, write_data_set

from trainer import storage
from trainer.data.corpora import Corpus, check_corpora, stored_rows_of
from trainer.data.google_bert import GoogleBertCorpus
from trainer.errors import InputError


def test_whole_data_passes(tmp_path):
    manifest = write_data_set(str(tmp_path / "one"), [20, 30], held_out_rows=[5])
    write_data_set(str(tmp_path / "two"), [20], gzipped=True)
    corpora = [Corpus(str(tmp_path / "one")), Corpus(str(tmp_path / "two"), weight=2)]
    check_corpora(corpora, sequence_length=8, vocabulary_sha256=manifest.vocabulary_sha256)
    rows = stored_rows_of(corpora, "train")
    assert (rows.num_corpora, rows.corpus_rows(0), rows.corpus_rows(1)) == (2, 50, 20)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("one byte", "shard {shard} is altered"),
        ("truncated", "shard {shard} has .* truncated"),
        ("swapped", "shard .*train-0000[01].tfrecord is altered"),
        ("missing", "shard {shard} is missing"),
        ("extra", "holds train-00007.tfrecord, which its manifest does not name"),
        ("vocabulary", "vocab.txt is altered"),
        ("no vocabulary", "vocab.txt is missing"),
    ],
)
def test_damage_is_named_before_training(tmp_path, kind, message):
    folder = str(tmp_path)
    write_data_set(folder, [20, 20])
    shard, other = (storage.join(folder, f"train-0000{number}.tfrecord") for number in (1, 0))
    vocabulary = storage.join(folder, "vocab.txt")
    content = storage.read_bytes(shard)
    if kind == "one byte":
        storage.write_bytes(shard, content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif kind == "truncated":
        storage.write_bytes(shard, content[:-1])
    elif kind == "swapped":
        storage.write_bytes(shard, storage.read_bytes(other))
        storage.write_bytes(other, content)
    elif kind == "missing":
        storage.remove(shard)
    elif kind == "extra":
        storage.write_bytes(storage.join(folder, "train-00007.tfrecord"), content)
    elif kind == "vocabulary":
        storage.write_text(vocabulary, storage.read_text(vocabulary) + "extra\n")
    else:
        storage.remove(vocabulary)
    with pytest.raises(InputError, match=message.format(shard=shard)):
        check_corpora([Corpus(folder)])


def test_without_checksums_only_names_and_sizes_are_compared(tmp_path):
    write_data_set(str(tmp_path), [20])
    shard = storage.join(str(tmp_path), "train-00000.tfrecord")
    content = storage.read_bytes(shard)
    storage.write_bytes(shard, content[:200] + bytes([content[200] ^ 1]) + content[201:])
    check_corpora([Corpus(str(tmp_path))], checksums=False)
    storage.write_bytes(shard, content[:-1])
    with pytest.raises(InputError, match="truncated"):
        check_corpora([Corpus(str(tmp_path))], checksums=False)


def test_data_that_does_not_fit_the_run_is_refused(tmp_path):
    write_data_set(str(tmp_path), [20])
    with pytest.raises(InputError, match=r"rows of 8 tokens, the run expects 16. Set .* to 8"):
        check_corpora([Corpus(str(tmp_path))], sequence_length=16)
    with pytest.raises(InputError, match=r"another vocabulary than the run's: .* 100 pieces .* Use .*vocab.txt"):
        check_corpora([Corpus(str(tmp_path))], vocabulary_sha256="0" * 64)


def test_corpora_that_do_not_fit_together_are_refused(tmp_path):
    write_data_set(str(tmp_path / "one"), [20])
    write_data_set(str(tmp_path / "long"), [20], length=12)
    write_data_set(str(tmp_path / "other"), [20], vocabulary_size=90)
    one = Corpus(str(tmp_path / "one"))
    with pytest.raises(InputError, match=r"long has rows of 12 tokens, .*one of 8"):
        check_corpora([one, Corpus(str(tmp_path / "long"))])
    with pytest.raises(InputError, match=r"different vocabularies \(90 and 100 pieces"):
        stored_rows_of([one, Corpus(str(tmp_path / "other"))], "train")
    with pytest.raises(InputError, match="different kinds"):
        stored_rows_of([one, GoogleBertCorpus("/nowhere")], "train")
    with pytest.raises(InputError, match="no corpus"):
        stored_rows_of([], "train")


def test_a_manifest_whose_rows_and_bytes_disagree_is_refused(tmp_path):
    manifest = write_data_set(str(tmp_path), [20])
    (shard,) = manifest.splits["train"]
    wrong = type(shard)(shard.name, 21, shard.bytes, shard.crc32c, shard.salt)
    change_manifest(str(tmp_path), manifest, splits={"train": (wrong,), "held_out": ()})
    with pytest.raises(InputError, match=r"the manifest is damaged: .*train-00000.tfrecord .* 21 rows take"):
        stored_rows_of([Corpus(str(tmp_path))], "train")
