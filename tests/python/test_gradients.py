"""Gradients by every input and weight against central differences of the float64 reference.

Each tensor is moved along one random direction; the layer's weights are random, so that no bias,
sink, scale or table is 0 or 1.
"""

import numpy as np
import pytest

import kerasattention as ka
import tape_attention
from backends import tensor, value_and_gradients_of_layer
from tape import Tape

B, T, S, D, DV, N, K, H = 2, 7, 11, 5, 3, 6, 3, 4
ROTARY = {"kind": "rotary", "fraction": 0.5, "layout": "interleaved", "theta": 100.0}
RELATIVE = {"kind": "relative", "num_buckets": 8, "max_distance": 11}
EVERYTHING = {"use_gate": True, "qk_norm": True, "attention_sink": True, "logit_soft_cap": 3.0}

# Options of the layer, of its position, and whether it attends to others.
LAYERS = {
    "self-attention, plain": ({"flash_attention": False}, RELATIVE, False),
    "self-attention, no scores held": ({"flash_attention": True}, RELATIVE, False),
    "cross-attention, rotary": ({"sliding_window": 9}, ROTARY, True),
}


def position_of(described):
    options = {name: x for name, x in described.items() if name != "kind"}
    kinds = {"rotary": ka.RotaryPosition, "relative": ka.RelativePosition}
    return kinds[described["kind"]](**options)


def drawn(rng, name, shape):
    if name.endswith("scale"):
        return 1.0 + 0.3 * rng.normal(size=shape)
    return rng.normal(size=shape) / np.sqrt(shape[0])


def name_of(variable):
    parts = variable.path.split("/")
    return parts[-1] if parts[-1] in ("sink", "table") else "/".join(parts[-2:])


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_central_differences_of_the_reference(name):
    options, position, cross = LAYERS[name]
    rng = np.random.default_rng(3)
    layer = ka.GroupQueryAttention(H, N, K, position=position_of(position), **EVERYTHING, **options)
    inputs = {"query": rng.normal(size=(B, T, D))}
    if cross:
        inputs |= {"value": rng.normal(size=(B, S, DV)), "key": rng.normal(size=(B, S, D))}
    layer.build(*[x.shape for x in inputs.values()])
    keys = S if cross else T
    inputs["attention_bias"] = rng.normal(size=(B, N, T, keys))
    weights = {
        name_of(v): drawn(rng, name_of(v), tuple(v.shape)) for v in layer.trainable_variables
    }
    for variable in layer.trainable_variables:
        variable.assign(weights[name_of(variable)])
    masked = np.arange(keys) < np.array([[keys], [4]])
    upstream = rng.normal(size=(B, T, D))
    found = value_and_gradients_of_layer(
        layer, inputs, tensor(upstream), key_mask=tensor(masked, "bool"), use_causal_mask=True
    )

    def reference(moved):
        own = {n: moved.get(n, x) for n, x in weights.items()}
        given = {n: moved.get(n, x) for n, x in inputs.items() if n != "attention_bias"}
        built = tape_attention.Layer(
            own, (1,), window=options.get("sliding_window"), cap=3.0, position=position
        )
        key = given.get("key", given["query"])
        output, *_ = built.with_sizes(given["query"], key)(
            Tape(),
            given,
            bias=moved.get("attention_bias", inputs["attention_bias"]),
            key_mask=masked,
            causal=True,
        )
        return (output.value * upstream).sum()

    everything = inputs | weights
    assert set(found) == {name_of(v) for v in layer.trainable_variables} | set(inputs)
    for which, x in everything.items():
        direction = rng.normal(size=x.shape)
        sides = [reference({which: x + sign * 1e-5 * direction}) for sign in (1, -1)]
        expected = (sides[0] - sides[1]) / 2e-5
        assert (found[which] * direction).sum() == pytest.approx(expected, rel=1e-4, abs=1e-4), (
            which
        )
