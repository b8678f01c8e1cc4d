"""The yardstick itself: values worked by hand, and its gradients against differences."""

import math

import numpy as np
import pytest

import reference


def one_head(logits, values):
    """Inputs whose logits (with scale 1) and values are the numbers given, T = 1."""
    S = len(logits)
    query = np.ones((1, 1, 1, 1))
    return query, np.reshape(logits, (1, S, 1, 1)), np.reshape(values, (1, S, 1, 1))


LOGITS = [math.log(1), math.log(2), math.log(3)]
VALUES = [10.0, 20.0, 60.0]


def test_hand_worked_rows():
    output, weights = reference.attention(*one_head(LOGITS, VALUES), scale=1.0)
    assert weights[0, 0, 0] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert output.item() == pytest.approx(10 / 6 + 40 / 6 + 180 / 6)

    sunk, weights = reference.attention(
        *one_head(LOGITS, VALUES), scale=1.0, sink=np.array([math.log(4)])
    )
    assert weights[0, 0, 0] == pytest.approx([0.1, 0.2, 0.3])
    assert sunk.item() == pytest.approx(1 + 4 + 18)

    seen = np.array([True, False, True]).reshape(1, 1, 1, 3)
    masked, _ = reference.attention(*one_head(LOGITS, VALUES), scale=1.0, seen=seen)
    assert masked.item() == pytest.approx(10 / 4 + 180 / 4)

    nothing, weights = reference.attention(*one_head(LOGITS, VALUES), seen=seen & False)
    assert nothing.item() == 0.0
    assert weights.sum() == 0.0

    keep = np.array([True, True, False]).reshape(1, 1, 1, 3)
    dropped, _ = reference.attention(*one_head(LOGITS, VALUES), scale=1.0, keep=keep, rate=0.5)
    assert dropped.item() == pytest.approx(2 * (10 / 6 + 40 / 6))


def test_hand_worked_masks():
    def table(**options):
        seen = reference.visible(1, 1, 3, 4, **options)[0, 0].astype(int)
        return ["".join(map(str, row)) for row in seen]

    assert table(causal=True) == ["1000", "1100", "1110"]
    assert table(window=2) == ["1100", "1110", "0111"]
    assert table(window=2, causal=True) == ["1000", "1100", "0110"]
    assert table(causal=True, query_positions=np.array([[1, 2, 3]])) == ["1100", "1110", "1111"]
    segments = {
        "query_segments": np.array([[1, 2, 0]]),
        "key_segments": np.array([[1, 1, 2, 0]]),
    }
    assert table(**segments) == ["1100", "0010", "0000"]
    assert table(key_mask=np.array([[1, 0, 1, 0]])) == ["1010"] * 3
    assert table(query_mask=np.array([[1, 0, 1]])) == ["1111", "0000", "1111"]
    assert table(mask=np.eye(3, 4, dtype=bool), causal=True) == ["1000", "0100", "0010"]


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(7)
    B, T, S, N, K, H, Hv = 1, 3, 5, 2, 1, 2, 3
    inputs = {
        "query": rng.normal(size=(B, T, N, H)),
        "key": rng.normal(size=(B, S, K, H)),
        "value": rng.normal(size=(B, S, K, Hv)),
        "bias": rng.normal(size=(B, N, T, S)),
        "sink": rng.normal(size=N),
    }
    seen = rng.random((B, N, T, S)) < 0.7
    seen[0, 0, 1] = False
    options = {"seen": seen, "cap": 1.5, "keep": rng.random((B, N, T, S)) < 0.8, "rate": 0.2}
    upstream = rng.normal(size=(B, T, N, Hv))
    found = reference.attention_gradients(**inputs, upstream=upstream, **options)
    for name in inputs:

        def loss(x, name=name):
            return float(
                (reference.attention(**{**inputs, name: x}, **options)[0] * upstream).sum()
            )

        expected = reference.finite_difference(loss, inputs[name])
        np.testing.assert_allclose(found[name], expected, atol=1e-8)
