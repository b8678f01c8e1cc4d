"""Attention rollout."""

import numpy as np
import pytest

import kerasattention
from classifiers import T, classifier, gqa


def test_rollout_by_hand():
    first = np.array([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.1, 0.9]]]])
    second = np.array([[[[0.0, 1.0], [1.0, 0.0]]]])
    rollout = kerasattention.attention_rollout([first, second])
    # Means over heads with half an identity: [[1, 0], [.15, .85]] and [[.5, .5], [.5, .5]].
    np.testing.assert_allclose(rollout[0, 0], [[1.0, 0.0], [0.15, 0.85]])
    np.testing.assert_allclose(rollout[1, 0], [[0.575, 0.425], [0.575, 0.425]])


def test_rollout_rows_sum_to_one(data):
    rollout = kerasattention.attention_rollout(
        kerasattention.attention_scores(classifier(gqa), data[0])
    )
    assert rollout.shape == (2, 5, T, T)
    np.testing.assert_allclose(rollout.sum(-1), 1.0, atol=1e-6)


def test_rollout_refuses_to_begin_with_nothing():
    with pytest.raises(ValueError, match="the map of at least one layer"):
        kerasattention.attention_rollout([])


def test_rollout_refuses_maps_of_some_rows(data):
    maps = kerasattention.attention_scores(classifier(gqa), data[0], rows=[0, 1])
    with pytest.raises(ValueError, match=r"all rows.*\(5, 6, 2, 7\)"):
        kerasattention.attention_rollout(maps)
