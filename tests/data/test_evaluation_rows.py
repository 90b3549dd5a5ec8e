"""Evaluation reads every row exactly once."""

import numpy as np
import pytest
import tensorflow as tf
from small_data_sets import row_numbers, write_data_set

from trainer.data.corpora import Corpus
from trainer.data.evaluation_rows import evaluation_dataset
from trainer.errors import InputError


def read(corpora, **changes):
    """Returns the columns of all steps, and the number of steps."""
    settings = {"global_batch": 8, "rows_per_element": 8} | changes
    dataset, num_steps = evaluation_dataset(corpora, **settings)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    elements = num_steps * settings["global_batch"] // settings.get("num_hosts", 1) // settings["rows_per_element"]
    taken = list(dataset.take(elements).as_numpy_iterator())
    return {name: np.concatenate([element[name] for element in taken]) for name in taken[0]}, num_steps


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_every_row_once_in_file_order_then_padding(tmp_path, gzipped, num_hosts):
    write_data_set(str(tmp_path), [5], held_out_rows=[7, 20, 3], first_id=100, gzipped=gzipped)
    parts = [
        read([Corpus(str(tmp_path))], rows_per_element=2, host=host, num_hosts=num_hosts) for host in range(num_hosts)
    ]
    assert {num_steps for _, num_steps in parts} == {4}
    rows = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
    np.testing.assert_array_equal(rows["example_weight"], [1.0] * 30 + [0.0] * 2)
    np.testing.assert_array_equal(rows["example_index"], np.arange(32))
    np.testing.assert_array_equal(row_numbers(rows["token_ids"])[:30], np.arange(105, 135))
    assert (rows["token_ids"][30:] == 0).all()
    assert rows["example_weight"].dtype == np.float32
    assert rows["example_index"].dtype == np.int32


def test_the_dataset_goes_on_with_padding(tmp_path):
    write_data_set(str(tmp_path), [5], held_out_rows=[3])
    dataset, num_steps = evaluation_dataset([Corpus(str(tmp_path))], global_batch=4, rows_per_element=2)
    weights = [element["example_weight"].tolist() for element in dataset.take(5).as_numpy_iterator()]
    assert num_steps == 1
    assert weights == [[1, 1], [1, 0], [0, 0], [0, 0], [0, 0]]


def test_more_rows_than_are_read_at_once_stay_in_order(tmp_path):
    write_data_set(str(tmp_path), [2600, 40], vocabulary_size=100)
    rows, num_steps = read([Corpus(str(tmp_path))], split="train", global_batch=100, rows_per_element=100)
    assert num_steps == 27
    np.testing.assert_array_equal(row_numbers(rows["token_ids"])[:2640], np.arange(2640))


def test_a_split_without_rows_is_refused(tmp_path):
    write_data_set(str(tmp_path), [5])
    with pytest.raises(InputError, match="no rows of the split 'held_out'; it has train"):
        evaluation_dataset([Corpus(str(tmp_path))], global_batch=4, rows_per_element=4)
