"""Same weights, same numbers and gradients as Keras's own layers, wherever Keras is right.

Where Keras is wrong, `test_defects.py` says what ours does instead.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest

from backends import sampled, tensor, value_and_gradients
from layer_twins import keras_loses_masks, pure, random_inputs, twins

B, T, S, D, DV, DK, N, H, HV = 3, 5, 7, 11, 13, 17, 2, 19, 23
X, Y = 2, 7  # further axes
CLOSE = {"rtol": 2e-5, "atol": 1e-5}
RNG = np.random.default_rng(3)


@dataclasses.dataclass
class Case:
    """Options of a layer and of its call, shapes and Keras masks of query, value and key."""

    options: dict[str, Any]
    shapes: list[tuple[int, ...]] = dataclasses.field(default_factory=lambda: CROSS)
    call: dict[str, Any] = dataclasses.field(default_factory=dict)
    masks: list[Any] = dataclasses.field(default_factory=list)
    kind: str = "MultiHeadAttention"


SELF = [(B, T, D), (B, T, D)]
CROSS = [(B, T, D), (B, S, DV)]
THREE = [(B, T, D), (B, S, DV), (B, S, DK)]
MHA = {"num_heads": N, "key_dim": H}
GQA = {"head_dim": H, "num_query_heads": 10, "num_key_value_heads": 2}
GQA_CROSS = [(B, T, D), (B, S, D), (B, S, DK)]


def some(*shape):
    """A mask under which each query sees the first key at least."""
    mask = RNG.random(shape) < 0.6
    mask[..., 0] = True
    return mask


def padded(length, *lengths):
    return np.arange(length) < np.array(lengths)[:, None]


def mha(**options):
    return MHA | options


def gqa(options=None, call=None, masks=(), shapes=None, **more):
    return Case(
        GQA | (options or {}), shapes or SELF, call or {}, masks, kind="GroupQueryAttention", **more
    )


CASES = {
    "self": Case(mha(), SELF),
    "cross": Case(mha()),
    "three inputs, no bias": Case(mha(use_bias=False), THREE),
    "value_dim": Case(mha(value_dim=HV), THREE),
    "output_shape": Case(mha(output_shape=31)),
    "output_shape of two axes": Case(mha(output_shape=(3, 5))),
    "gate": Case(mha(use_gate=True), THREE),
    "gate without bias, window": Case(mha(use_gate=True, use_bias=False, sliding_window=3)),
    "window": Case(mha(sliding_window=2), SELF),
    "window, causal": Case(mha(sliding_window=3), SELF, {"use_causal_mask": True}),
    "causal": Case(mha(), SELF, {"use_causal_mask": True}),
    "causal, more keys": Case(mha(), CROSS, {"use_causal_mask": True}),
    "causal, more queries": Case(mha(), [(B, S, D), (B, T, DV)], {"use_causal_mask": True}),
    "mask (T, S)": Case(mha(), CROSS, {"attention_mask": some(T, S)}),
    "mask (B, T, S)": Case(mha(), CROSS, {"attention_mask": some(B, T, S)}),
    "mask (1, T, S)": Case(mha(), CROSS, {"attention_mask": some(1, T, S)}),
    "mask (B, 1, S)": Case(mha(), CROSS, {"attention_mask": some(B, 1, S)}),
    "mask (B, 1, T, S)": Case(mha(), CROSS, {"attention_mask": some(B, 1, T, S)}),
    "mask (B, N, T, S)": Case(mha(), CROSS, {"attention_mask": some(B, N, T, S)}),
    "mask of integers": Case(mha(), CROSS, {"attention_mask": some(B, T, S).astype("int32")}),
    "mask of floats": Case(mha(), CROSS, {"attention_mask": some(B, T, S).astype("float32")}),
    "mask, causal": Case(mha(), CROSS, {"attention_mask": some(B, T, S), "use_causal_mask": True}),
    "value_mask": Case(mha(), CROSS, {"value_mask": padded(S, 7, 4, 1)}),
    "key_mask": Case(mha(), THREE, {"key_mask": padded(S, 5, 7, 2)}),
    "value_mask and key_mask": Case(
        mha(), THREE, {"key_mask": padded(S, 5, 7, 2), "value_mask": padded(S, 3, 2, 7)}
    ),
    "Keras mask of value": Case(mha(), CROSS, masks=[None, padded(S, 7, 4, 1)]),
    "Keras masks of all, causal": Case(
        mha(),
        THREE,
        {"use_causal_mask": True},
        masks=[padded(T, 5, 4, 3), padded(S, 7, 4, 1), padded(S, 3, 7, 5)],
    ),
    "Keras masks, mask (B, T, S)": Case(
        mha(),
        SELF,
        {"attention_mask": some(B, T, T)},
        masks=[padded(T, 5, 4, 3), padded(T, 5, 4, 3)],
    ),
    "axis 1 of (B, X, Y, D)": Case(mha(attention_axes=1), [(B, T, Y, D), (B, S, Y, DV)]),
    "axis 2 of (B, X, Y, D)": Case(mha(attention_axes=(2,)), [(B, X, T, D), (B, X, S, DV)]),
    "axis -2": Case(mha(attention_axes=-2), [(B, X, T, D), (B, X, S, DV)]),
    "axes 1 and 2": Case(mha(attention_axes=(1, 2)), [(B, T, 3, D), (B, S, 2, DV)]),
    "axes 2 and 1": Case(mha(attention_axes=(2, 1)), [(B, T, 3, D), (B, S, 2, DV)]),
    "all axes": Case(mha(), [(B, T, 3, D), (B, S, 2, DV)]),
    "axes 1 and 3 of 5, gate, output_shape": Case(
        mha(attention_axes=(1, 3), use_gate=True, output_shape=(5,), value_dim=HV),
        [(B, T, X, 2, D), (B, S, X, 3, DV)],
    ),
    "axis 2, mask (T, S)": Case(
        mha(attention_axes=2), [(B, X, T, D), (B, X, S, DV)], {"attention_mask": some(T, S)}
    ),
    "axis 2, mask (B, T, S)": Case(
        mha(attention_axes=2), [(B, X, T, D), (B, X, S, DV)], {"attention_mask": some(B, T, S)}
    ),
    "axis 2, mask (B, X, T, S)": Case(
        mha(attention_axes=2), [(B, X, T, D), (B, X, S, DV)], {"attention_mask": some(B, X, T, S)}
    ),
    "axis 2, mask (B, X, N, T, S)": Case(
        mha(attention_axes=2),
        [(B, X, T, D), (B, X, S, DV)],
        {"attention_mask": some(B, X, N, T, S)},
    ),
    "axis 1, mask (B, T, S)": Case(
        mha(attention_axes=1), [(B, T, Y, D), (B, S, Y, DV)], {"attention_mask": some(B, T, S)}
    ),
    "two axes, mask of their four": Case(
        mha(attention_axes=(1, 2)),
        [(B, T, 3, D), (B, S, 2, DV)],
        {"attention_mask": some(T, 3, S, 2) | (np.arange(S) == 0)[:, None]},
    ),
    "two axes, mask of batch and their four": Case(
        mha(attention_axes=(1, 2)),
        [(B, T, 3, D), (B, S, 2, DV)],
        {"attention_mask": some(B, T, 3, S, 2) | (np.arange(S) == 0)[:, None]},
    ),
    "axis 2, value_mask (B, S)": Case(
        mha(attention_axes=2), [(B, X, T, D), (B, X, S, DV)], {"value_mask": padded(S, 7, 4, 1)}
    ),
    "axis 1, value_mask (B, S)": Case(
        mha(attention_axes=1), [(B, T, Y, D), (B, S, Y, DV)], {"value_mask": padded(S, 7, 4, 1)}
    ),
    "axis 2, Keras masks (B, X, T)": Case(
        mha(attention_axes=2),
        [(B, X, T, D), (B, X, S, DV)],
        masks=[some(B, X, T), some(B, X, S)],
    ),
    "grouped": gqa(),
    "grouped, one key/value head": gqa({"num_key_value_heads": 1}),
    "grouped, a key/value head each": gqa({"num_key_value_heads": 10}),
    "grouped, cross": gqa(shapes=GQA_CROSS),
    "grouped, unequal features": gqa(shapes=THREE),
    "grouped, no bias, gate": gqa({"use_bias": False, "use_gate": True}, shapes=GQA_CROSS),
    "grouped, window, causal": gqa({"sliding_window": 3}, {"use_causal_mask": True}),
    "grouped, causal, more keys": gqa(call={"use_causal_mask": True}, shapes=CROSS),
    "grouped, mask (T, S)": gqa(call={"attention_mask": some(T, T)}),
    "grouped, mask (B, T, S)": gqa(call={"attention_mask": some(B, T, T)}),
    "grouped, mask (B, N, T, S)": gqa(call={"attention_mask": some(B, 10, T, T)}),
    "grouped, Keras masks": gqa(masks=[padded(T, 5, 4, 3), padded(T, 5, 4, 3)]),
    "grouped, query_mask and value_mask": gqa(
        call={"query_mask": padded(T, 5, 4, 3), "value_mask": padded(S, 6, 3, 1)}, shapes=CROSS
    ),
}


# One of each kind of projection, mask and axis.
ON_JAX = [
    *("value_dim", "output_shape of two axes", "gate", "window, causal", "causal, more queries"),
    *("mask (B, N, T, S)", "Keras masks of all, causal", "axis 2, mask (B, X, N, T, S)"),
    *("axes 1 and 3 of 5, gate, output_shape", "two axes, mask of batch and their four"),
    *("grouped, unequal features", "grouped, window, causal", "grouped, Keras masks"),
]


@pytest.mark.parametrize("name", sampled(CASES, ON_JAX))
def test_numbers_and_gradients(name):
    case = CASES[name]
    theirs, ours = twins(case.kind, case.options, *case.shapes)
    inputs = random_inputs(*case.shapes)
    rng = np.random.default_rng(5)
    upstream = rng.normal(size=ours.compute_output_shape(*case.shapes))
    upstream = tensor(upstream * valid_rows(case))
    # Keras's path with scores: its other one fails for some, and ours must equal both.
    scored = {**case.call, "return_attention_scores": True}
    their_function, their_inputs = pure(theirs, inputs, case.masks, **scored)
    our_function, our_inputs = pure(ours, inputs, case.masks, **case.call)
    with_scores_function, _ = pure(ours, inputs, case.masks, **scored)
    assert our_inputs.keys() == their_inputs.keys()

    def of(which, values):
        return {name: values[f"{which} {name}"] for name in our_inputs}

    def all_at_once(**values):
        their_values, our_values = of("their", values), of("our", values)
        wanted, wanted_scores = their_function(**their_values)
        (output,) = our_function(**our_values)
        stacked = keras.ops.stack([wanted, output])
        return stacked, wanted_scores, *with_scores_function(**our_values)

    values = {f"their {name}": x for name, x in their_inputs.items()}
    values |= {f"our {name}": x for name, x in our_inputs.items()}
    with keras_loses_masks():
        found, all_gradients = value_and_gradients(all_at_once, values, upstream)
    (wanted, output), wanted_scores, with_scores, scores = found
    wanted_gradients, gradients = of("their", all_gradients), of("our", all_gradients)
    valid = valid_rows(case)
    np.testing.assert_allclose(output * valid, wanted * valid, **CLOSE)
    np.testing.assert_allclose(with_scores, output, **CLOSE)
    valid = valid_scores(case, scores)
    np.testing.assert_allclose(scores * valid, wanted_scores * valid, **CLOSE)
    scale = max(np.abs(x).max() for x in wanted_gradients.values())
    for each, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient / scale, wanted_gradients[each] / scale, **CLOSE, err_msg=each
        )


def query_mask_of(case):
    given = case.masks[0] if len(case.masks) else None
    return case.call.get("query_mask", given)


def valid_rows(case):
    """1 where a query is no padding: what Keras gives for padding depends on its path."""
    mask = query_mask_of(case)
    if mask is None:
        return 1.0
    extra = case.options.get("output_shape", (1,))
    return mask.reshape(mask.shape + (1,) * np.size(extra)).astype("float32")


def valid_scores(case, scores):
    mask = query_mask_of(case)
    if mask is None:
        return 1.0
    return np.expand_dims(mask, -1 if mask.ndim == scores.ndim - 1 else (mask.ndim - 1, -1))
