"""The pretraining task: what it serves, and when a prediction counts as right."""

import numpy as np
import pytest
from keras import ops
from small_runs import LENGTH, VOCABULARY_SIZE, random_examples, small_task

from trainer.tasks.pretraining import correct


@pytest.mark.parametrize("pairs", [False, True])
def test_signatures_take_any_number_of_rows_and_positions(pairs):
    task = small_task(pairs=pairs)
    model = task.build_model(seed=0, dtype="float32")
    signatures = task.serving_signatures(model)
    for batch, positions in ((1, 1), (3, 5)):
        examples = random_examples(0, batch)
        rows = {name: examples[name] for name in ("token_ids", "segment_ids")}
        wanted = np.tile(np.arange(positions, dtype=np.int32), (batch, 1))
        answer = signatures["serving_default"](**rows, positions=wanted)
        assert answer["token_logits"].shape == (batch, positions, VOCABULARY_SIZE)
        assert ("pair_logits" in answer) == pairs
        assert signatures["encode"](**rows)["hidden"].shape[:2] == (batch, LENGTH)


def test_a_prediction_is_right_where_no_logit_is_greater():
    logits = np.array([[[1.0, 3.0, 2.0], [5.0, 5.0, 1.0]], [[0.0, 1.0, 2.0], [np.nan] * 3]], np.float32)
    labels = np.array([[1, 0], [1, 2]], np.int32)
    np.testing.assert_array_equal(ops.convert_to_numpy(correct(logits, labels)), [[1, 1], [0, 0]])
