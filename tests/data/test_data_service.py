"""Rows through tf.data services: the order of the lanes, or an error."""

import numpy as np
import pytest
import tensorflow as tf
from small_data_sets import write_data_set

from tools.data_service import start
from trainer.data.corpora import Corpus
from trainer.data.lanes import training_dataset
from trainer.data.stored_rows import explain_read_error
from trainer.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 148 rows."""
    folder = str(tmp_path_factory.mktemp("data"))
    write_data_set(folder, [50, 60, 38])
    return folder


@pytest.fixture(scope="module")
def services():
    """Two services of one worker each."""
    started = [start("localhost", 0) for _ in range(2)]
    yield [address for address, _ in started]
    for _, servers in started:
        for server in reversed(servers):
            server._stop()


def dataset(folder, services=(), **changes):
    options = {"start_step": 0, "global_batch": 24, "rows_per_element": 12} | changes
    return training_dataset([Corpus(folder)], seed=3, lanes=8, block_rows=8, services=services, **options)


def rows(dataset, elements=30):
    taken = list(dataset.take(elements).as_numpy_iterator())
    return {name: np.concatenate([element[name] for element in taken]) for name in taken[0]}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("options", [{}, {"start_step": 1001}, {"host": 1, "num_hosts": 2}])
def test_rows_come_in_the_order_of_the_lanes(folder, services, count, options):
    expected, found = rows(dataset(folder, **options)), rows(dataset(folder, services[:count], **options))
    assert expected.keys() == found.keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)


def test_a_second_worker_is_noticed_before_a_row_of_it_is_used(folder, services):
    service = tf.data.experimental.service
    address, servers = start("localhost", 0)
    dispatcher = address.removeprefix("grpc://")
    second = service.WorkerServer(service.WorkerConfig(dispatcher_address=dispatcher))
    expected = rows(dataset(folder), 200)["token_ids"].reshape(200, 12, -1)
    with pytest.raises(tf.errors.OpError) as caught:
        for place, element in enumerate(dataset(folder, [address]).take(200).as_numpy_iterator()):
            np.testing.assert_array_equal(element["token_ids"], expected[place])
    explained = explain_read_error(caught.value, Corpus.stored_rows([Corpus(folder)], "train"))
    assert isinstance(explained, InputError) and "out of turn" in str(explained)
    for server in (second, *reversed(servers)):
        server._stop()


@pytest.mark.parametrize(
    ("services", "message"),
    [
        (["localhost:5050"], "grpc://host:5050"),
        (["grpc://a:1", "grpc://a:1"], "named twice"),
        ([f"grpc://a:{port}" for port in range(3)], "do not divide lanes = 8"),
        ([f"grpc://a:{port}" for port in range(8)], "do not divide the rows of an element = 12"),
    ],
)
def test_what_cannot_be_is_refused(folder, services, message):
    with pytest.raises(InputError, match=message):
        dataset(folder, services)
