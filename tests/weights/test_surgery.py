"""Changing vocabularies, positions and layers: rows move whole, logits of kept tokens stay the same numbers."""

import dataclasses

import numpy as np
import pytest
from small_weights import CONFIG, PIECES, small_model, small_source, values_of, variables_of

from trainer.errors import InputError
from trainer.models.encoder import padded_vocabulary_size
from trainer.weights.loading import check_vocabulary, load_weights
from trainer.weights.opening import open_weights
from trainer.weights.surgery import change_positions, change_vocabulary, grow_vocabulary, keep_tokens
from trainer.weights.writing import write_weights

WORDS = "encoder/embeddings/word_embeddings/embeddings"
BIAS = "masked_language_model/output_bias"
POSITIONS = "encoder/embeddings/position_embeddings/embeddings"


def loaded_model(source):
    """Returns a model of a source's own vocabulary and architecture, with its weights."""
    model = small_model(source.description.encoder, source.description.vocabulary_size)
    assert not load_weights(source, variables_of(model)).missing
    return model


def logits(source, ids):
    """Returns the token logits `[rows, length, tokens]`."""
    return np.asarray(loaded_model(source)(np.array(ids, np.int32))["token_logits"])


def bert4keras_rows(table, keep, compounds):
    """What `Transformer.load_embeddings` of bert4keras 0.11.5 computes of the embeddings, and of the output bias."""
    kept = table[keep]
    added = [np.average(kept[ids], 0, weights) for ids, weights in compounds]
    return np.concatenate([kept, np.array(added)], 0)


def test_kept_and_compound_tokens_are_those_of_bert4keras():
    source = small_source()
    keep, compounds = [0, 1, 2, 3, 4, 6, 5, 9, 12], [([5, 8], [1, 1]), ([6, 7], [3, 1])]
    changed = keep_tokens(source, keep, [[5, 8], ([6, 7], [3, 1])])
    for name in (WORDS, BIAS):
        expected = bert4keras_rows(source.read(name), keep, compounds)
        np.testing.assert_allclose(changed.read(name), expected, rtol=1e-6)
        np.testing.assert_array_equal(changed.read(name)[:9], expected[:9])
        assert changed.shape(name) == expected.shape == changed.read(name).shape
    for name in set(source.names) - {WORDS, BIAS}:
        np.testing.assert_array_equal(changed.read(name), source.read(name), err_msg=name)
    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "the", "un", "mat", "catmat", "theun")
    assert changed.description.pieces == pieces
    assert changed.description.vocabulary_size == 11


def test_compounds_alone_keep_every_token():
    changed = keep_tokens(small_source(), None, [[5, 11]])
    assert changed.description.pieces == (*PIECES, "thes")


def test_logits_of_kept_tokens_are_the_same_numbers_as_before():
    source = small_source()
    keep = [0, 1, 2, 3, 4, 12, 6, 7, 5]
    before = logits(source, [[2, 5, 6, 7, 3], [2, 12, 6, 3, 0]])
    after = logits(keep_tokens(source, keep, [[5, 6]]), [[2, 8, 6, 7, 3], [2, 5, 6, 3, 0]])
    np.testing.assert_array_equal(after[..., :9], before[..., keep])


@pytest.mark.parametrize(
    ("ids", "compounds", "message"),
    [
        ([0, 99], (), "no token id 99: memory has 14 tokens"),
        ([0, -1], (), "no token id -1"),
        ([0, "the"], (), "no token id 'the'"),
        ([0, 1.5], (), r"no token id 1\.5"),
        ([0, True], (), "no token id True"),
        ([0, 5, 5], (), "kept twice"),
        ([5, 0], (), r"must be \[PAD\] with id 0"),
        ([], (), r"must be \[PAD\] with id 0"),
        ([0, 5], [[2]], "no token id 2: what is kept has 2 tokens"),
        ([0, 5], [[]], "is a list of ids"),
        ([0, 5], [([1, 0], [1.0])], "as many weights"),
        ([*range(7)], [[5, 6], [5, 6]], "the compound token 'thecat' is in the vocabulary already"),
        ([*range(7)], [[5]], "the compound token 'the' is in the vocabulary already"),
        ([*range(7)], [([5, 6], [1, -1])], "whose sum is not 0"),
        ([*range(7)], [([5, 6], [0.1 + 0.2, -0.3])], "whose sum is not 0"),
        ([*range(7)], [([5, 6], ["a", "b"])], "whose sum is not 0"),
        ([*range(7)], [([5, 6], [[1, 2], [3, 4]])], "whose sum is not 0"),
        ([0, 3, 5], (), r"must be kept; the list lacks \[UNK\] \(id 1\), \[CLS\] \(id 2\), \[MASK\] \(id 4\)"),
    ],
)
def test_impossible_tokens_are_refused(ids, compounds, message):
    with pytest.raises(InputError, match=message):
        keep_tokens(small_source(), ids, compounds)


def nameless(source, pieces=None):
    return dataclasses.replace(source, description=dataclasses.replace(source.description, pieces=pieces))


def test_tokens_without_names_are_kept_by_number():
    changed = keep_tokens(nameless(small_source()), [3, 0, 5], [[0, 1]])
    assert changed.description.pieces is None and changed.description.vocabulary_size == 4
    np.testing.assert_array_equal(changed.read(BIAS)[:3], small_source().read(BIAS)[[3, 0, 5]])


def with_padding(source, padding_id):
    encoder = dataclasses.replace(source.description.encoder, padding_id=padding_id)
    return dataclasses.replace(source, description=dataclasses.replace(source.description, encoder=encoder))


def test_padding_keeps_its_meaning():
    source = with_padding(nameless(small_source()), 3)
    assert keep_tokens(source, [5, 0, 3]).description.encoder.padding_id == 2
    assert keep_tokens(source, None, [[5, 6]]).description.encoder.padding_id == 3
    with pytest.raises(InputError, match=r"the token of id 3 must stay: it is padding \(encoder\.padding_id\)"):
        keep_tokens(source, [5, 0])
    old = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", *PIECES[4:])
    changed, _ = change_vocabulary(with_padding(small_source(pieces=old), 3), NEW)
    assert changed.description.encoder.padding_id == 0
    np.testing.assert_array_equal(changed.read(WORDS)[0], small_source().read(WORDS)[3])


def test_a_tokenizer_goes_only_where_its_ids_still_hold():
    source = nameless(small_source())
    description = dataclasses.replace(source.description, tokenizer_files=("bert/tokenizer.json",))
    source = dataclasses.replace(source, description=description)
    for changed in (keep_tokens(source, None, [[5, 6]]), keep_tokens(source, range(14)), grow_vocabulary(source, 20)):
        assert changed.description.tokenizer_files == ("bert/tokenizer.json",)
    assert keep_tokens(source, [0, 2, 1]).description.tokenizer_files == ()


def test_rows_beyond_the_vocabulary_file_get_names():
    changed = keep_tokens(nameless(small_source(), PIECES[:-2]), [0, 1, 2, 3, 4, 5, 13, 12])
    assert changed.description.pieces == (*PIECES[:6], "[unused1]", "[unused0]")
    grown = grow_vocabulary(nameless(small_source(), PIECES[:-2]), 16)
    assert grown.description.pieces == (*PIECES[:-2], "[unused0]", "[unused1]", "[unused2]", "[unused3]")


# Another vocabulary.

NEW = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "cat", "unable", "cats", "dog", "##able", "mat")
NEW += ("Cat", "the")


def test_pieces_that_stay_keep_their_rows_wherever_they_stand():
    source = small_source()
    changed, counts = change_vocabulary(source, NEW)
    assert counts == {"kept": 9, "composed": 3, "new": 2}
    for name in (WORDS, BIAS):
        for place, piece in enumerate(NEW):
            if piece in PIECES:
                np.testing.assert_array_equal(changed.read(name)[place], source.read(name)[PIECES.index(piece)])
    before = logits(source, [[2, 5, 6, 12, 3]])
    after = logits(changed, [[2, NEW.index("the"), NEW.index("cat"), NEW.index("mat"), 3]])
    for place, piece in enumerate(NEW):
        if piece in PIECES:
            np.testing.assert_allclose(after[..., place], before[..., PIECES.index(piece)], rtol=1e-6)


def test_new_pieces_begin_as_the_mean_of_what_they_are_made_of():
    source = small_source()
    changed, _ = change_vocabulary(source, NEW)
    for name in (WORDS, BIAS):
        table = source.read(name).astype(np.float64)
        for piece, parts in (("unable", ("un", "##able")), ("cats", ("cat", "##s")), ("Cat", ("cat",))):
            expected = table[[PIECES.index(part) for part in parts]].mean(0)
            np.testing.assert_allclose(changed.read(name)[NEW.index(piece)], expected, rtol=1e-6, err_msg=piece)


def test_what_the_old_vocabulary_cannot_spell_begins_at_random_like_the_others():
    pieces = (*PIECES, *(f"中{number}" for number in range(500)))
    source = small_source()
    first, again, other = (change_vocabulary(source, pieces, seed)[0].read(WORDS)[14:] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    table = source.read(WORDS)
    np.testing.assert_allclose(first.mean(0), table.mean(0), atol=0.2)
    np.testing.assert_allclose(first.std(0), 0.88 * table.std(0), rtol=0.15)  # of a normal distribution cut off at two
    assert np.abs((first - table.mean(0)) / table.std(0)).max() <= 2.001
    assert not change_vocabulary(source, pieces)[0].read(BIAS)[14:].any()


def test_a_changed_vocabulary_loads_into_a_model_of_the_new_one(tmp_path):
    pieces = (*PIECES, *(f"more{number}" for number in range(200)))
    changed, _ = change_vocabulary(small_source(), pieces)
    write_weights(changed, str(tmp_path / "out"), "checkpoint")
    back = open_weights(str(tmp_path / "out"))
    check_vocabulary(back, pieces)
    model = small_model(vocabulary_size=len(pieces))
    report = load_weights(back, variables_of(model))
    assert not report.missing and not report.unused
    table = values_of(model)[WORDS]
    assert table.shape == (padded_vocabulary_size(214), 16) == (256, 16)
    np.testing.assert_array_equal(table[:214], changed.read(WORDS))
    assert not table[214:].any()


@pytest.mark.parametrize(("pieces", "lower_case"), [((*PIECES, "dog"), True), ((*PIECES[:5], "Dog", "Cat"), False)])
def test_whether_texts_are_lower_cased_is_told_from_the_new_vocabulary(pieces, lower_case):
    assert change_vocabulary(small_source(), pieces)[0].description.lower_case is lower_case


def test_a_vocabulary_is_needed_to_go_over_to_another():
    with pytest.raises(InputError, match="what its ids mean is not known"):
        change_vocabulary(nameless(small_source()), NEW)
    with pytest.raises(InputError, match=r"the vocabulary of memory lacks \[UNK\]"):
        change_vocabulary(nameless(small_source(), ("[PAD]", "<unk>", *PIECES[2:])), NEW)


def test_a_vocabulary_grows_at_the_end():
    source = small_source(pieces=(*PIECES, "[unused1]"))
    grown = grow_vocabulary(source, 18)
    assert grown.description.pieces == (*PIECES, "[unused1]", "[unused0]", "[unused2]", "[unused3]")
    np.testing.assert_array_equal(grown.read(WORDS)[:15], source.read(WORDS))
    np.testing.assert_array_equal(grown.read(BIAS), [*source.read(BIAS), 0, 0, 0])
    assert len(np.unique(grown.read(WORDS), axis=0)) == 18
    ids = [[2, 5, 6, 7, 3]]
    np.testing.assert_allclose(logits(grown, ids)[..., :15], logits(source, ids), rtol=1e-6)
    with pytest.raises(InputError, match="has 15 tokens: 9 are fewer"):
        grow_vocabulary(source, 9)


def test_half_precision_tables_are_averaged_in_full():
    source = small_source()
    arrays = source.tensors.arrays
    arrays[WORDS] = arrays[WORDS].astype(np.float16)
    mean = keep_tokens(source, None, [[5, 6, 7]]).read(WORDS)[-1]
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, arrays[WORDS][5:8].astype(np.float64).mean(0), rtol=1e-6)


# Positions.


def test_repeated_positions_start_over():
    source = small_source()
    changed = change_positions(source, 50, "repeat")
    np.testing.assert_array_equal(changed.read(POSITIONS), source.read(POSITIONS)[np.arange(50) % 20])
    assert changed.shape(POSITIONS) == (50, 16) and changed.description.encoder.max_length == 50


@pytest.mark.parametrize("alpha", [0.4, 0.3])
def test_hierarchical_positions_are_those_of_the_formula_and_of_the_encoder(alpha):
    """Su 2020, kexue.fm/archives/7947: q[i n + j] = a u[i] + (1 - a) u[j] with u = (p - a p[0]) / (1 - a)."""
    source = small_source()
    table = source.read(POSITIONS).astype(np.float64)
    u = (table - alpha * table[0]) / (1 - alpha)
    expected = np.array([alpha * u[i // 20] + (1 - alpha) * u[i % 20] for i in range(90)])
    changed = change_positions(source, 90, "hierarchical", alpha)
    np.testing.assert_allclose(changed.read(POSITIONS), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(changed.read(POSITIONS)[:20], source.read(POSITIONS))  # short texts as before
    combining = dataclasses.replace(CONFIG, hierarchical_alpha=alpha)
    written_out = change_positions(small_source(combining), 90)
    np.testing.assert_array_equal(written_out.read(POSITIONS), changed.read(POSITIONS))
    ids = np.random.default_rng(0).integers(5, 14, (2, 90))
    model = small_model(combining)
    load_weights(source, variables_of(model))
    hidden = np.asarray(model(ids.astype(np.int32))["hidden"])
    np.testing.assert_allclose(np.asarray(loaded_model(changed)(ids.astype(np.int32))["hidden"]), hidden, atol=1e-5)


@pytest.mark.parametrize("method", ["repeat", "hierarchical"])
def test_fewer_positions_are_the_first(method):
    changed = change_positions(small_source(), 8, method)
    np.testing.assert_array_equal(changed.read(POSITIONS), small_source().read(POSITIONS)[:8])


def test_impossible_positions_are_refused():
    with pytest.raises(InputError, match="20 positions combine to 400 at most; 401 were asked for"):
        change_positions(small_source(), 401)
    assert change_positions(small_source(), 400).read(POSITIONS).shape == (400, 16)
    with pytest.raises(InputError, match="by repeat or hierarchical, not by 'mirror'"):
        change_positions(small_source(), 40, "mirror")
    with pytest.raises(InputError, match="at least 1"):
        change_positions(small_source(), 0)
    source = small_source()
    longer = dataclasses.replace(source.description, encoder=dataclasses.replace(CONFIG, max_length=512))
    with pytest.raises(InputError, match="has 20 positions where its configuration says 512"):
        change_positions(dataclasses.replace(source, description=longer), 40)
    rotary = small_source(dataclasses.replace(CONFIG, positions="rotary"))
    with pytest.raises(InputError, match="has rotary positions, which need no extension"):
        change_positions(rotary, 40)


def test_changes_add_up(tmp_path):
    source = small_source()
    changed = change_positions(keep_tokens(source, range(8), [[5, 6]]), 32, "repeat")
    grown = grow_vocabulary(changed, 12)
    write_weights(grown, str(tmp_path / "out"), "hugging_face")
    back = open_weights(str(tmp_path / "out"))
    assert back.description.encoder.max_length == 32
    assert back.description.pieces == (*PIECES[:8], "thecat", "[unused0]", "[unused1]", "[unused2]")
    for name in grown.names:
        np.testing.assert_array_equal(back.read(name), grown.read(name), err_msg=name)
