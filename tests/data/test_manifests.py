"""Manifests say what a data set holds, and tell when it does not."""

import pytest
from small_data_sets import write_data_set

from trainer import storage
from trainer.data.manifests import MANIFEST_NAME, load_manifest, verify_data_set
from trainer.data.records import RowFormat
from trainer.errors import InputError


def test_a_manifest_comes_back_as_it_was_saved(tmp_path):
    manifest = write_data_set(str(tmp_path), [5, 7], held_out_rows=[3])
    loaded = load_manifest(str(tmp_path))
    assert loaded == manifest
    assert (loaded.rows("train"), loaded.rows("held_out")) == (12, 3)
    assert loaded.row_format == RowFormat(8, 2)
    verify_data_set(str(tmp_path), loaded, checksums=True)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no prepared data: manifest.json is missing. Make it with"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format_version": 1', '"format_version": 99', "version 99; this program reads .* version 1"),
        ('"format": "bert-trainer rows"', '"format": "something"', "of format 'something'"),
        ('"sequence_length"', '"sequence_width"', "is damaged"),
        ('"splits": {', '"splits": [{', "is damaged"),
        ('"rows": 5', '"lines": 5', "is damaged"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(tmp_path, old, new, message):
    write_data_set(str(tmp_path), [5])
    path = storage.join(str(tmp_path), MANIFEST_NAME)
    text = storage.read_text(path)
    assert old in text
    storage.write_text(path, text.replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        load_manifest(str(tmp_path))
    assert path in str(error.value)


def test_what_an_interrupted_writer_leaves_is_no_extra_shard(tmp_path):
    manifest = write_data_set(str(tmp_path), [5])
    storage.write_bytes(storage.join(str(tmp_path), "train-00001.tfrecord.tmp-0123abcd"), b"part")
    verify_data_set(str(tmp_path), manifest, checksums=True)
