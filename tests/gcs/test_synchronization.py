"""Folders copied between a disk and a bucket."""

import pytest
from data.small_data_sets import write_data_set

from tools import sync
from trainer.data.manifests import load_manifest, verify_data_set
from trainer.errors import InputError, StorageFailed
from trainer.storage.synchronization import compare_folders, synchronize


@pytest.fixture
def folder(tmp_path):
    write_data_set(str(tmp_path / "data"), [20, 30], held_out_rows=[5])
    (tmp_path / "data" / "below").mkdir()
    (tmp_path / "data" / "below" / "note.txt").write_text("below")
    return tmp_path / "data"


def copy(source, target):
    difference = compare_folders(str(source), str(target))
    synchronize(str(source), str(target), difference)
    return sorted(difference.to_copy)


def test_a_data_set_goes_up_and_comes_down_and_only_what_differs_is_copied(emulator, bucket, folder, tmp_path):
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert copy(folder, f"{bucket}/set") == names
    assert copy(folder, f"{bucket}/set") == []
    verify_data_set(f"{bucket}/set", load_manifest(f"{bucket}/set"), checksums=True)
    assert copy(f"{bucket}/set", tmp_path / "back") == names
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    # Of the same size, but other bytes.
    (tmp_path / "back" / "below" / "note.txt").write_text("BELOW")
    emulator.delete(f"{bucket}/set/{names[1]}")
    mark = emulator.requests.mark()
    assert copy(tmp_path / "back", f"{bucket}/set") == sorted(["below/note.txt", names[1]])
    assert len({request.object for request in emulator.requests.since(mark, "write")}) == 2


def test_the_manifest_comes_last_and_does_not_speak_for_a_mixture(emulator, bucket, folder, tmp_path):
    copy(folder, f"{bucket}/set")
    other = tmp_path / "other"
    write_data_set(str(other), [20, 30], held_out_rows=[5], first_id=500)
    fault = emulator.faults.add(f"write {bucket}/set/*", "status", status=403, after=1, times=None)
    with pytest.raises(StorageFailed, match="permission is denied"):
        copy(other, f"{bucket}/set")
    assert emulator.faults.hits(fault)
    assert "set/manifest.json" not in emulator.list(bucket)
    emulator.faults.clear()
    assert "manifest.json" in copy(other, f"{bucket}/set")
    verify_data_set(f"{bucket}/set", load_manifest(f"{bucket}/set"), checksums=True)


def test_what_cannot_be_is_refused(bucket, tmp_path):
    with pytest.raises(InputError, match="one of them must lie in Google Cloud Storage"):
        compare_folders(str(tmp_path), str(tmp_path))
    with pytest.raises(InputError, match="there are no files in"):
        compare_folders(str(tmp_path / "nothing"), bucket)


def test_the_command(bucket, folder, tmp_path, capsys):
    assert sync.main([str(folder), f"{bucket}/set", "--dry_run"]) == 0
    assert "6 files to copy" in capsys.readouterr().out
    assert sync.main([str(folder), f"{bucket}/set", "--plain"]) == 0
    assert f"{bucket}/set holds all 6 files, verified" in capsys.readouterr().out
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").write_text("stays")
    assert sync.main([f"{bucket}/set", str(tmp_path / "back")]) == 0
    assert "1 are only in" in capsys.readouterr().out and (tmp_path / "back" / "mine").exists()
