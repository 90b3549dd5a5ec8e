"""A prepared data set holds the corpus, has one form however it was made, and is made in steps that survive a stop."""

import dataclasses
import gzip
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from small_texts import add_near_duplicates, corpus, files_of, small_units

from trainer.data import spills
from trainer.data.documents import ReadingOptions, divide_into_units, find_files
from trainer.data.manifests import load_manifest, verify_data_set
from trainer.data.preparation import PreparationSettings, build_vocabulary, prepare
from trainer.data.preparation_work import CountingJob, count_words, split_sentences
from trainer.data.records import decode_rows, row_hashes
from trainer.data.vocabulary import SPECIAL_TOKENS, load_vocabulary, make_vocabulary
from trainer.data.workers import Workers
from trainer.errors import InputError, StorageFailed, TrainingFailed


def rows_of(folder, manifest, split):
    """The decoded rows of a split, read as any TFRecord reader does, with their hashes checked."""
    for shard in manifest.splits[split]:
        dataset = tf.data.TFRecordDataset(str(folder / shard.name), manifest.compression or "")
        records = np.array([np.frombuffer(record, np.uint8) for record in dataset.as_numpy_iterator()])
        assert len(records) == shard.rows
        assert np.array_equal(row_hashes(records, shard.salt, 0), records[:, :4].copy().view("<u4")[:, 0])
        yield decode_rows(manifest.row_format, records)


@pytest.mark.parametrize("compress", [False, True])
def test_rows_hold_each_document_of_the_corpus_once(tmp_path, compress):
    settings = corpus(tmp_path / "corpus")
    settings = PreparationSettings(**{**vars(settings), "compress": compress})
    manifest = prepare(settings, tmp_path / "out", num_workers=0)
    assert manifest == load_manifest(tmp_path / "out")
    verify_data_set(str(tmp_path / "out"), manifest, checksums=True)
    vocabulary = load_vocabulary(tmp_path / "out" / "vocab.txt")
    found = []
    for split in ("train", "held_out"):
        pieces = []
        for rows in rows_of(tmp_path / "out", manifest, split):
            for ids, documents in zip(rows.token_ids, rows.document_ids, strict=True):
                pieces += [vocabulary.text(ids[documents == d][1:-1]) for d in range(1, documents.max() + 1)]
        found.append(" ".join(pieces))
    texts = [text for path in sorted((tmp_path / "corpus").glob("*.txt")) for text in path.read_text().split("\n\n")]
    spread = [" ".join(text.replace(".", " . ").replace(",", " , ").split()) for text in texts]
    places = [[document in each for each in found] for document in spread]
    assert all(any(place) for place in places)
    assert sum(map(len, found)) + 1 == len(" ".join(spread))
    assert manifest.summary["documents"] == len(texts)
    assert 0 < manifest.summary["held_out_documents"] < len(texts) / 4
    assert not any(".tmp-" in name or name == "unfinished" for name in os.listdir(tmp_path / "out"))


def test_worker_processes_and_the_division_into_units_do_not_change_a_byte(tmp_path, monkeypatch):
    settings = corpus(tmp_path / "corpus")
    prepare(settings, tmp_path / "together", num_workers=0)
    small_units(monkeypatch)
    prepare(settings, tmp_path / "units", num_workers=0)
    prepare(settings, tmp_path / "processes", num_workers=2)
    alone, units, processes = (files_of(tmp_path / name) for name in ("together", "units", "processes"))
    assert units == processes
    assert list(alone) == list(units)
    # The fingerprint, and with it the hash in every row, covers the division into units; what the rows hold does not.
    for split in ("train", "held_out"):
        rows = [rows_of(tmp_path / name, load_manifest(tmp_path / name), split) for name in ("together", "units")]
        for one, other in zip(*rows, strict=True):
            assert np.array_equal(one.token_ids, other.token_ids)


def test_a_large_gzipped_file_goes_to_several_spills_and_gives_the_same_bytes(tmp_path, monkeypatch):
    settings = corpus(tmp_path / "corpus", files=1, documents=300)
    with gzip.open(tmp_path / "corpus" / "all.txt.gz", "wb") as file:
        file.write((tmp_path / "corpus" / "0.txt").read_bytes())
    settings = dataclasses.replace(settings, inputs=(f"{tmp_path}/corpus/all.txt.gz",))
    prepare(settings, tmp_path / "whole", num_workers=0)

    monkeypatch.setattr("trainer.data.preparation_work._SPILL_TOKENS", 2000)
    monkeypatch.setattr("trainer.data.preparation_work._BATCH_CHARACTERS", 2000)
    written, write_spill = [], spills.write_spill

    def third_write_fails(path, sections, information):
        if len(written) == 2:
            written.append(None)
            raise StorageFailed("no space left")
        write_spill(path, sections, information)
        written.append(sum(map(len, sections)))

    monkeypatch.setattr(spills, "write_spill", third_write_fails)
    with pytest.raises(StorageFailed, match="no space left"):
        prepare(settings, tmp_path / "parts", num_workers=0)
    prepare(settings, tmp_path / "parts", num_workers=0)
    assert len(written) > 8 and max(written[3:]) < sum(written[3:]) / 4
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_counting_words_reads_only_so_much_of_a_unit(tmp_path):
    corpus(tmp_path / "corpus", files=1, documents=300)
    (unit,) = divide_into_units(find_files([str(tmp_path / "corpus" / "0.txt")]), ReadingOptions())
    job = CountingJob(unit, ReadingOptions(), True, most_characters=1 << 40)
    everything = sum(count_words(job).values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.data.preparation_work._BATCH_CHARACTERS", 2000)
        assert sum(count_words(job).values()) == everything
        some = sum(count_words(dataclasses.replace(job, most_characters=10_000)).values())
    assert 0 < some < everything / 2


def test_object_stores_are_read_and_written_through_tensorflows_file_systems(tmp_path):
    settings = corpus(tmp_path / "corpus", files=2)
    for path in sorted((tmp_path / "corpus").glob("*.txt")):
        tf.io.gfile.copy(str(path), f"ram://corpus/{path.name}", overwrite=True)
    with tf.io.gfile.GFile("ram://corpus/2.jsonl.gz", "wb") as file:
        file.write(gzip.compress(b'{"text": "alpha beta gamma delta"}\n'))
    remote = PreparationSettings(**{**vars(settings), "inputs": ("ram://corpus/*",)})
    manifest = prepare(remote, "ram://prepared", num_workers=0)
    assert manifest.summary["documents"] == 121
    verify_data_set("ram://prepared", load_manifest("ram://prepared"), checksums=True)


@pytest.mark.parametrize(("stop_at", "similarity"), [(1, None), (3, None), (6, None), (8, None), (8, 0.8), (9, 0.8)])
def test_stopped_anywhere_it_continues_without_doing_finished_work_again(tmp_path, monkeypatch, stop_at, similarity):
    small_units(monkeypatch)
    monkeypatch.setattr("trainer.data.preparation._PARTITION_TEXT_BYTES", 20_000)
    settings = dataclasses.replace(corpus(tmp_path / "corpus"), near_duplicates=similarity)
    prepare(settings, tmp_path / "whole", num_workers=0)
    calls = []

    def stop(phase, done, total, unit, tokens):
        calls.append((phase, done))
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings, tmp_path / "stopped", num_workers=0, progress=stop)
    with pytest.raises(InputError, match="no prepared data"):
        load_manifest(tmp_path / "stopped")
    continued = []
    prepare(settings, tmp_path / "stopped", num_workers=0, progress=lambda *call: continued.append(call[:2]))
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    # The call that stopped the first run had reported its unit or shard as done: the second run begins after it.
    assert calls[-1] in continued
    assert all(call not in continued for call in calls[:-1] if call[0] == calls[-1][0])


def test_finished_data_are_taken_as_they_are_and_other_settings_are_refused_with_the_difference(tmp_path):
    settings = corpus(tmp_path / "corpus")
    manifest = prepare(settings, tmp_path / "out", num_workers=0)
    assert prepare(settings, tmp_path / "out", num_workers=0, progress=pytest.fail) == manifest
    other = PreparationSettings(**{**vars(settings), "sequence_length": 32})
    with pytest.raises(InputError, match=r"sequence_length was 24, now 32.*--overwrite"):
        prepare(other, tmp_path / "out", num_workers=0)
    (tmp_path / "corpus" / "1.txt").write_text("something else")
    with pytest.raises(InputError, match=r"input files changed.*1\.txt"):
        prepare(settings, tmp_path / "out", num_workers=0)
    assert prepare(other, tmp_path / "out", num_workers=0, overwrite=True).sequence_length == 32


def test_duplicates_are_left_out_once_and_counted(tmp_path):
    settings = corpus(tmp_path / "corpus", files=1)
    text = (tmp_path / "corpus" / "0.txt").read_text()
    (tmp_path / "corpus" / "1.txt").write_text(text)
    manifest = prepare(settings, tmp_path / "out", num_workers=0)
    assert (manifest.summary["documents"], manifest.summary["duplicate_documents"]) == (60, 60)
    kept = PreparationSettings(**{**vars(settings), "keep_duplicates": True})
    assert prepare(kept, tmp_path / "kept", num_workers=0).summary["documents"] == 120


def test_near_duplicates_are_left_out_and_counted(tmp_path):
    settings = corpus(tmp_path / "corpus", files=1)
    add_near_duplicates(tmp_path / "corpus")
    every = prepare(settings, tmp_path / "every", num_workers=0)
    assert every.summary["documents"] == 120 and "near_duplicate_documents" not in every.summary
    settings = dataclasses.replace(settings, near_duplicates=0.8)
    manifest = prepare(settings, tmp_path / "out", num_workers=0)
    assert (manifest.summary["documents"], manifest.summary["near_duplicate_documents"]) == (80, 40)
    assert manifest.summary["tokens"] < every.summary["tokens"]


def test_training_keeps_no_near_duplicate_of_a_document_that_is_held_out(tmp_path):
    settings = corpus(tmp_path / "corpus", files=1)
    add_near_duplicates(tmp_path / "corpus", copies=60)
    settings = dataclasses.replace(settings, near_duplicates=0.8, held_out=0.3, sequence_length=160)
    manifest = prepare(settings, tmp_path / "out", num_workers=0)
    texts = []  # the long documents of each split, by their middle, which their copies share
    for split in ("train", "held_out"):
        ids = [rows.token_ids for rows in rows_of(tmp_path / "out", manifest, split)]
        texts.append({row[20:100].tobytes() for row in np.concatenate(ids) if row[140]})
    assert texts[0] and texts[1] and not texts[0] & texts[1]


PAIRS = {"packing": "sentence_pair_sop", "compress": True}


@pytest.mark.parametrize(
    ("changes", "workers"),
    [({}, 0), (PAIRS, 0), pytest.param(PAIRS, 2, marks=pytest.mark.slow)],  # slow: processes that import TensorFlow
)
def test_units_partitions_workers_and_merging_do_not_change_which_near_duplicates_are_left_out(
    tmp_path, monkeypatch, changes, workers
):
    settings = dataclasses.replace(corpus(tmp_path / "corpus", files=2), near_duplicates=0.8, **changes)
    add_near_duplicates(tmp_path / "corpus")
    small_units(monkeypatch)
    prepare(settings, tmp_path / "units", num_workers=0)
    monkeypatch.setattr("trainer.data.preparation._PARTITION_TEXT_BYTES", 9000)
    prepare(settings, tmp_path / "partitions", num_workers=workers)
    monkeypatch.setattr("trainer.data.merging._MOST_SPILLS", 2)
    monkeypatch.setattr("trainer.data.merging._GROUP_SPILLS", 3)
    monkeypatch.setattr("trainer.data.merging._RANGES", 2)
    phases = []
    prepare(settings, tmp_path / "merged", num_workers=0, progress=lambda *call: phases.append(call[:3]))
    assert any(phase == "merging" and done == total > 1 for phase, done, total in phases)
    expected = files_of(tmp_path / "units")
    assert expected["manifest"]["summary"]["near_duplicate_documents"] == 40
    assert files_of(tmp_path / "partitions") == expected
    assert files_of(tmp_path / "merged") == expected


def test_filtered_documents_are_counted_by_reason_and_leave_no_trace(tmp_path):
    settings = corpus(tmp_path / "corpus", files=1)
    (tmp_path / "corpus" / "other.txt").write_text("zeta\n\n12 34 5 zeta 99 1\n\n{ } ( ) = ; zeta\n\n" * 40)
    settings = dataclasses.replace(settings, vocabulary=None, vocabulary_size=60, keep_duplicates=True)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "0.txt").write_bytes((tmp_path / "corpus" / "0.txt").read_bytes())
    plain = dataclasses.replace(settings, inputs=(f"{tmp_path}/plain/*.txt",))
    filtered = dataclasses.replace(settings, min_words=2, max_digit_share=0.3, max_symbol_share=0.5)
    expected = prepare(plain, tmp_path / "expected", num_workers=0)
    manifest = prepare(filtered, tmp_path / "out", num_workers=0)
    assert manifest.summary.pop("filtered_documents") == {
        "too_few_words": 40,
        "too_many_digits": 40,
        "too_many_symbols": 40,
    }
    assert manifest.vocabulary_sha256 == expected.vocabulary_sha256  # it is learned from what is kept
    assert manifest.summary["documents"] == expected.summary["documents"]
    nothing = dataclasses.replace(filtered, min_words=10**6)
    with pytest.raises(InputError, match="filters leave no words"):
        prepare(nothing, tmp_path / "none", num_workers=0)
    nothing = dataclasses.replace(nothing, vocabulary=str(tmp_path / "out" / "vocab.txt"))
    with pytest.raises(InputError, match=r"leave nothing of the corpus: 180 documents with too few words"):
        prepare(nothing, tmp_path / "nothing", num_workers=0)


def test_options_that_are_not_used_change_neither_the_record_nor_the_fingerprint(tmp_path):
    settings = corpus(tmp_path / "corpus", files=1)
    later = {"near_duplicates", "languages", "min_words", "max_symbol_share"}
    assert not later & set(settings.decisive())
    assert dataclasses.replace(settings, max_symbol_share=0.0).decisive()["max_symbol_share"] == 0.0
    prepare(settings, tmp_path / "out", num_workers=0)
    with pytest.raises(InputError, match=r"near_duplicates was None, now 0\.9"):
        prepare(dataclasses.replace(settings, near_duplicates=0.9), tmp_path / "out", num_workers=0)


def test_a_work_folder_is_shared_by_preparations_and_keeps_what_is_not_ours(tmp_path):
    settings = corpus(tmp_path / "corpus", files=1)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.txt").write_text("keep")

    def stop(phase, done, total, unit, tokens):
        if phase == "writing shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings, tmp_path / "out", num_workers=0, work_folder=tmp_path / "work", progress=stop)
    cased = dataclasses.replace(settings, lower_case=False)
    prepare(cased, tmp_path / "out", num_workers=0, work_folder=tmp_path / "work", overwrite=True)
    prepare(cased, tmp_path / "expected", num_workers=0)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    assert (tmp_path / "work" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("packing", ["sentence_pair_nsp", "sentence_pair_sop"])
def test_pair_rows_carry_labels_and_segments(tmp_path, packing):
    settings = PreparationSettings(**{**vars(corpus(tmp_path / "corpus")), "packing": packing})
    manifest = prepare(settings, tmp_path / "out", num_workers=0)
    labels = np.concatenate([rows.pair_labels for rows in rows_of(tmp_path / "out", manifest, "train")])
    assert set(labels) == {0, 1} and 0.3 < labels.mean() < 0.7


def test_a_tiny_corpus_still_holds_out_a_document(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text("one document\n\nand another\n\nand a third\n")
    settings = PreparationSettings(inputs=(str(path),), vocabulary_size=60, held_out=0.001, sequence_length=16)
    manifest = prepare(settings, tmp_path / "out", num_workers=0)
    assert manifest.summary["held_out_documents"] == 1
    assert manifest.rows("train") and manifest.rows("held_out")


def test_a_corpus_without_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n\u200b\n")
    make_vocabulary([*SPECIAL_TOKENS, "a"]).save(tmp_path / "vocab")
    settings = PreparationSettings(inputs=(str(tmp_path / "empty.txt"),), vocabulary=str(tmp_path / "vocab"))
    with pytest.raises(InputError, match="no text"):
        prepare(settings, tmp_path / "out", num_workers=0)


def test_the_embedded_corpus_brings_its_own_vocabulary(tmp_path):
    settings = PreparationSettings(source="python_docs", python_packages=("json", "email"), vocabulary_size=800)
    manifest = prepare(settings, tmp_path / "out", num_workers=0)
    assert manifest.vocabulary_size == 800
    assert manifest.summary["documents"] > 50 and manifest.summary["unknown_token_share"] < 0.001
    vocabulary = load_vocabulary(tmp_path / "out" / "vocab.txt")
    assert build_vocabulary(settings, str(tmp_path), num_workers=0) == vocabulary
    texts = [vocabulary.text(ids) for rows in rows_of(tmp_path / "out", manifest, "train") for ids in rows.token_ids]
    assert any("deserialize" in text for text in texts)
    with pytest.raises(InputError, match="'no_such_package'"):
        prepare(PreparationSettings(source="python_docs", python_packages=("no_such_package",)), tmp_path / "x")


def test_a_killed_worker_gives_a_message_that_says_how_to_go_on():
    with Workers(1) as workers, pytest.raises(TrainingFailed, match="run the same command again"):
        list(workers.run(signal.raise_signal, [signal.SIGKILL]))


def test_a_damaged_spill_is_found(tmp_path):
    builder = spills.SectionBuilder()
    builder.add(b"h" * 16, np.array([2, 1]), np.array([5, 6, 7]))
    path = str(tmp_path / "unit.spill")
    spills.write_spill(path, [b"", builder.content(2)], {"documents": 1})
    assert spills.read_information(path) == {"documents": 1}
    assert spills.read_content(path, 0) == b""
    assert spills.read_contents(path, 0, 2) == [b"", spills.read_content(path, 1)]
    section = spills.parse_section(spills.read_content(path, 1), 2)
    assert section.token_ids.tolist() == [5, 6, 7] and section.sentence_lengths.tolist() == [2, 1]
    content = bytearray((tmp_path / "unit.spill").read_bytes())
    content[60] ^= 1
    (tmp_path / "unit.spill").write_bytes(content)
    with pytest.raises(StorageFailed, match="damaged"):
        spills.read_content(path, 1)
    (tmp_path / "unit.spill").write_bytes(content[:-3])
    assert spills.read_information(path) is None


def test_a_full_disk_ends_with_a_message_and_keeps_what_is_finished(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    small_units(monkeypatch)
    settings = corpus(tmp_path / "corpus")
    prepare(settings, tmp_path / "whole", num_workers=0)
    largest = max(size for size in (path.stat().st_size for path in (tmp_path / "whole").glob("*.tfrecord")))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
        with pytest.raises(StorageFailed, match="cannot write"):
            prepare(settings, tmp_path / "out", num_workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not any(".tmp-" in name for name in os.listdir(tmp_path / "out"))
    phases = []
    prepare(settings, tmp_path / "out", num_workers=0, progress=lambda *call: phases.append(call[:3]))
    assert [phase for phase in phases if phase[0] == "tokenizing"] == [("tokenizing", phases[0][2], phases[0][2])]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_gzipped_shards_hold_no_time(tmp_path):
    settings = PreparationSettings(**{**vars(corpus(tmp_path / "corpus", files=1)), "compress": True, "num_shards": 1})
    prepare(settings, tmp_path / "out", num_workers=0)
    content = (tmp_path / "out" / "train-00000-of-00001.tfrecord.gz").read_bytes()
    assert content[4:8] == bytes(4) and not content[3] & 8  # no modification time, no file name
    assert len(gzip.decompress(content)) > len(content)


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "go." Then he went.', ['He said "go."', "Then he went."]),
        ("No. 5 costs 3.5 dollars, i.e. little.", ["No. 5 costs 3.5 dollars, i.e. little."]),
        ("spaced out . Another one .", ["spaced out .", "Another one ."]),
        ("你好。再见！", ["你好。", "再见！"]),
        ("他说：“好。”然后走了。", ["他说：“好。”", "然后走了。"]),
        ("no mark", ["no mark"]),
    ],
)
def test_sentences_end_at_marks(line, sentences):
    assert split_sentences(line) == sentences


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "at least one"),
        ({"source": "python_docs"}, "not both"),
        ({"packing": "pairs"}, "full_sentences, sentence_pair_nsp"),
        ({"sequence_length": 3}, "sequence_length"),
        ({"held_out": 0.9}, "held_out"),
        ({"num_shards": 0}, "num_shards"),
        ({"document_start": "("}, "document_start"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        PreparationSettings(**{"inputs": ("a.txt",), **changes})
