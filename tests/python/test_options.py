"""Options of the layers together: each against a float64 reference, in every kernel.

The reference is written out below for self-attention of three axes, from projections
to output; it knows of the package's numbers only the weights.
"""

import itertools

import keras
import numpy as np
import pytest

import kerasattention
import position_reference as formulas
import reference
from backends import BACKEND, JIT, tensor, to_numpy, value_and_gradients
from kerasattention import (
    AlibiPosition,
    GroupQueryAttention,
    MultiHeadAttention,
    RelativePosition,
    RotaryPosition,
    ScaleByPosition,
    pack_sequences,
)
from layer_twins import call, output_of, pure, randomize, weights_of
from problems import block_size, engine_options

B, T, D, H, N, K = 2, 11, 7, 6, 6, 2
RNG = np.random.default_rng(17)
X = RNG.normal(size=(B, T, D)).astype("float32")
UPSTREAM = RNG.normal(size=(B, T, D)).astype("float32")
MASK = RNG.random((B, N, T, T)) < 0.8
BIAS = RNG.normal(size=(1, N, T, T)).astype("float32")
SEGMENTS = np.array([[1] * 4 + [2] * 5 + [0] * 2, [3] * 7 + [1] * 4])
OWN = np.array([[*range(4), *range(5), 0, 0], [*range(7), *range(4)]])


# The reference ----------------------------------------------------------------------------


def expected_output(layer, x, *, mask=None, bias=None, segments=None, positions=None):
    """(B, T, D) in float64."""
    weights = {name: value.astype(float) for name, value in weights_of(layer).items()}
    x = x.astype(float)
    query, key, value = (
        np.einsum("btd,dnh->btnh", x, weights[f"{name}/kernel"]) + weights.get(f"{name}/bias", 0)
        for name in ("query", "key", "value")
    )
    if layer.qk_norm:
        query = rms(query) * weights["query_norm/scale"]
        key = rms(key) * weights["key_norm/scale"]
    value = rms(value) if layer.value_norm else value
    batch, length = x.shape[:2]
    at = np.broadcast_to(np.arange(length) if positions is None else positions, (batch, length))
    query, key, own = positioned(layer, weights, query, key, at)
    if layer.query_scale is not None:
        query = query * by_position(layer.query_scale.options, at)[:, :, None, None]
    seen = reference.visible(
        batch,
        query.shape[2],
        length,
        length,
        mask=mask,
        causal=layer.use_causal_mask,
        window=layer.sliding_window,
        query_positions=at,
        key_positions=at,
        query_segments=segments,
        key_segments=segments,
    )
    heads, _ = reference.attention(
        query,
        key,
        value,
        seen=seen,
        scale=layer.scale,
        bias=sum(part for part in (own, bias) if part is not None) if own is not None else bias,
        cap=layer.logit_soft_cap,
        sink=weights.get("sink"),
    )
    if layer.use_gate:
        gate = np.einsum("btd,dnh->btnh", x, weights["gate/kernel"]) + weights.get("gate/bias", 0)
        heads = heads / (1 + np.exp(-gate))
    output = np.einsum("btnh,nhd->btd", heads, weights["attention_output/kernel"])
    return output + weights.get("attention_output/bias", 0)


def rms(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def by_position(options, at):
    """Llama 4's factors of queries."""
    steps = np.floor((at + options["offset"]) / options["floor_scale"])
    return 1.0 + options["attn_scale"] * np.log(1.0 + steps)


def positioned(layer, weights, query, key, at):
    """Queries and keys turned, and the bias (B, N, T, T) or None."""
    position, heads = layer.position, query.shape[2]
    if isinstance(position, RotaryPosition):
        size = round(position.fraction * query.shape[-1])
        pairs = formulas.frequencies(position.theta, size)
        query = formulas.rotate(query, at, pairs, position.layout)
        return query, formulas.rotate(key, at, pairs, position.layout), None
    if isinstance(position, AlibiPosition):
        return query, key, np.stack([formulas.alibi(heads, row, row) for row in at])
    if isinstance(position, RelativePosition):
        table = next(value for name, value in weights.items() if name.endswith("table"))
        sizes = (position.num_buckets, position.max_distance, layer.use_causal_mask)
        buckets = np.stack([formulas.bucket_matrix(row, row, *sizes) for row in at])
        return query, key, np.moveaxis(table[buckets], -1, 1)
    return query, key, None


# Combinations -----------------------------------------------------------------------------

POSITIONS = {
    "none": lambda: None,
    "half": lambda: RotaryPosition(theta=50.0),
    "interleaved": lambda: RotaryPosition(theta=50.0, fraction=2 / 3, layout="interleaved"),
    "alibi": AlibiPosition,
    "relative": lambda: RelativePosition(6, 9),
}
SWITCHES = {
    "use_causal_mask": True,
    "qk_norm": True,
    "logit_soft_cap": 1.5,
    "attention_sink": True,
    "use_gate": True,
    "sliding_window": 4,
    "value_norm": True,
    "scale": 0.3,
    "query_scale": ScaleByPosition(attn_scale=0.5, floor_scale=3),
}
CALLS = {
    "plain call": {},
    "mask and bias": {"mask": MASK, "bias": BIAS},
    "packed": {"segments": SEGMENTS, "positions": OWN},
    "all": {"mask": MASK, "bias": BIAS, "segments": SEGMENTS, "positions": OWN},
}
NAMES = {
    "mask": "attention_mask",
    "bias": "attention_bias",
    "segments": "segment_ids",
    "positions": "positions",
}


def combinations():
    """Each position with each kind of call, with switches drawn so that each pair is covered.

    The first is without any option and the last has all.
    """
    # The first seed for which the test below passes.
    rng, names = np.random.default_rng(2169), list(SWITCHES)
    pairs = list(itertools.product(POSITIONS, CALLS))
    drawn = [rng.random(len(names)) < 0.5 for _ in pairs]
    drawn[0][:], drawn[-1][:] = False, True
    return [
        (position, frozenset(itertools.compress(names, on)), name)
        for (position, name), on in zip(pairs, drawn, strict=True)
    ]


def test_each_pair_of_options_is_combined():
    """Each switch, on and off, with each position, kind of call and other switch, on and off."""
    rows = combinations()
    assert rows[0] == ("none", frozenset(), "plain call")
    assert rows[-1] == ("relative", frozenset(SWITCHES), "all")
    settings = [
        {(0, position), (1, call), *((switch, switch in switches) for switch in SWITCHES)}
        for position, switches, call in rows
    ]
    values = {0: POSITIONS, 1: CALLS} | dict.fromkeys(SWITCHES, (False, True))
    for one, other in itertools.combinations(values, 2):
        for pair in itertools.product(values[one], values[other]):
            assert any({(one, pair[0]), (other, pair[1])} <= row for row in settings), (one, pair)


def describe(combination):
    position, switches, name = combination
    return " ".join([position, "+".join(sorted(switches)) or "nothing", name]).replace(" ", "-")


def make(position, switches, flash=None, kind=GroupQueryAttention):
    sizes = {"head_dim": H, "num_query_heads": N, "num_key_value_heads": K}
    if kind is MultiHeadAttention:
        sizes = {"num_heads": 3, "key_dim": H}
    options = {name: SWITCHES[name] for name in switches}
    layer = kind(**sizes, position=POSITIONS[position](), flash_attention=flash, **options)
    layer.build((B, T, D))
    randomize(layer, seed=3)
    return layer


def call_options(name):
    return {NAMES[key]: value for key, value in CALLS[name].items()}


@pytest.mark.parametrize("combination", combinations(), ids=describe)
def test_options_together_by_every_way(combination):
    """The output is the reference's, and so are the gradients of the two kernels each other's."""
    position, switches, name = combination
    plain, blocked = (make(position, switches, flash) for flash in (False, True))
    expected = expected_output(plain, X, **CALLS[name])
    options = call_options(name)
    pairs = [pure(layer, [X], **options) for layer in (plain, blocked)]
    with block_size(4):
        (outputs,), gradients = value_and_gradients(*together(pairs), tensor(UPSTREAM))
    for output in outputs:
        np.testing.assert_allclose(output, expected, atol=1e-5)
    for weight in pairs[0][1]:
        of_plain, of_blocked = (gradients[f"{weight} {index}"] for index in range(2))
        size = max(1.0, np.abs(of_plain).max())
        np.testing.assert_allclose(of_blocked, of_plain, atol=1e-5 * size, err_msg=weight)


def together(pairs):
    """Functions with their values as one function of all values."""

    def function(**named):
        outputs = [
            one(**{name: named[f"{name} {index}"] for name in values})[0]
            for index, (one, values) in enumerate(pairs)
        ]
        return (keras.ops.stack(outputs),)

    values = {f"{name} {i}": x for i, (_, given) in enumerate(pairs) for name, x in given.items()}
    return function, values


@pytest.mark.parametrize("position", POSITIONS)
def test_multi_head_attention_takes_the_same_options(position):
    layer = make(position, SWITCHES, kind=MultiHeadAttention)
    mask = MASK[:, :3]
    found = output_of(layer, [X], attention_mask=mask, segment_ids=SEGMENTS, positions=OWN)
    expected = expected_output(layer, X, mask=mask, segments=SEGMENTS, positions=OWN)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("position", ["none", "half", "interleaved"])
def test_the_fused_way_agrees(position):
    """Where a backend has a kernel for it: no bias, cap or sink."""
    if BACKEND != "torch":
        with pytest.raises(ValueError, match="fused"):
            fused(make(position, {"use_causal_mask"}))
        return
    layer = make(position, {"use_causal_mask", "qk_norm", "use_gate"})
    found = to_numpy(fused(layer))
    np.testing.assert_allclose(found, expected_output(layer, X), atol=1e-5)


def fused(layer):
    with engine_options(implementation="fused"):
        return call(layer, [X])


# Positions and the causal rule ------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
def test_the_order_of_tokens_is_that_of_their_positions(position):
    """Shuffled tokens with their positions give shuffled results, causal and windowed."""
    layer = make(position, {"use_causal_mask", "sliding_window", "attention_sink"})
    order = RNG.permutation(T)
    whole = output_of(layer, [X])
    shuffled = np.broadcast_to(order, (B, T))
    found = output_of(layer, [X[:, order]], positions=shuffled)
    np.testing.assert_allclose(found, whole[:, order], atol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
def test_left_padding_with_positions_is_the_shorter_sequence(position):
    layer = make(position, SWITCHES)
    pad = 4
    padded = np.concatenate([np.ones((B, pad, D), "float32"), X], axis=1)
    real = np.broadcast_to(np.arange(pad + T) >= pad, (B, pad + T))
    at = np.maximum(np.broadcast_to(np.arange(pad + T) - pad, (B, pad + T)), 0)
    found = output_of(layer, [padded], masks=[real], positions=at)
    np.testing.assert_allclose(found[:, pad:], output_of(layer, [X]), atol=1e-5)


# Packing ----------------------------------------------------------------------------------


PACKED = list(itertools.product(POSITIONS, (False, True)))


# On the others a position by one kernel: each kernel meets each position in the test above.
@pytest.mark.parametrize(("position", "flash"), PACKED if BACKEND == "torch" else PACKED[::3])
def test_packed_sequences_train_as_alone(position, flash):
    """Outputs, and gradients of every weight summed over the sequences one by one."""
    rng = np.random.default_rng(8)
    # Of two lengths, so that JAX compiles what trains one alone twice.
    sequences = [rng.integers(1, 19, size) for size in (5, 3, 5, 3, 5)]
    packed = pack_sequences(sequences, 11)
    embedded = rng.normal(size=(19, D)).astype("float32")
    upstreams = [rng.normal(size=(1, len(s), D)).astype("float32") for s in sequences]
    layer = make(position, {"use_causal_mask", "qk_norm", "attention_sink"}, flash=flash)
    where = [packed.segment_ids == index + 1 for index in range(len(sequences))]
    x, upstream = embedded[packed.tokens], np.zeros((*packed.tokens.shape, D), "float32")
    for rows, part in zip(where, upstreams, strict=True):
        upstream[rows] = part[0]
    ids = {"segment_ids": packed.segment_ids, "positions": packed.positions}
    with block_size(4):
        (together,), found = value_and_gradients(*pure(layer, [x], **ids), tensor(upstream))
    total = {}
    for length in (3, 5):
        same = [i for i, sequence in enumerate(sequences) if len(sequence) == length]
        function, values = pure(layer, [embedded[np.stack([sequences[i] for i in same])]])
        part = tensor(np.concatenate([upstreams[i] for i in same]))
        (alone,), gradients = value_and_gradients(function, values, part)
        for index, output in zip(same, alone, strict=True):
            np.testing.assert_allclose(together[where[index]], output, atol=1e-5)
        for name, gradient in gradients.items():
            if name.startswith("weight"):
                total[name] = total.get(name, 0) + gradient
    for name, gradient in total.items():
        size = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(found[name], gradient, atol=1e-5 * size, err_msg=name)
    # Padding itself gets the output's bias alone.
    bias = to_numpy(layer.projection("output").bias)
    padding = together[packed.segment_ids == 0]
    assert len(padding)
    np.testing.assert_allclose(padding, np.broadcast_to(bias, padding.shape), atol=1e-6)


# Shapes of the layers ---------------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
def test_cross_attention_with_values_of_their_own_size(position):
    """Keys stand at 0, 1, ...; both kernels agree, and positions matter."""
    options = {"num_heads": 3, "key_dim": H, "value_dim": 5, "logit_soft_cap": 2.0}
    layers = [
        MultiHeadAttention(
            **options, position=POSITIONS[position](), flash_attention=flash, attention_sink=True
        )
        for flash in (False, True)
    ]
    source = RNG.normal(size=(B, 17, 5)).astype("float32")
    for layer in layers:
        layer.build((B, T, D), (B, 17, 5))
        randomize(layer, seed=4)
    with block_size(4):
        plain, blocked = (output_of(layer, [X, source]) for layer in layers)
    np.testing.assert_allclose(blocked, plain, atol=1e-5)
    far = output_of(layers[0], [X, source], positions=np.full((B, T), 40))
    assert (np.abs(far - plain).max() > 1e-3) == (position != "none")


@pytest.mark.parametrize("position", POSITIONS)
def test_attended_axes_are_sequences_of_their_own(position):
    """Columns of (B, rows, columns, D) are attended as the rows put into the batch are."""
    layer = MultiHeadAttention(
        3, H, attention_axes=2, position=POSITIONS[position](), sliding_window=3, qk_norm=True
    )
    images = RNG.normal(size=(2, 3, 5, D)).astype("float32")
    layer.build(images.shape)
    randomize(layer)
    flat = MultiHeadAttention(3, H, position=POSITIONS[position](), sliding_window=3, qk_norm=True)
    flat.build((6, 5, D))
    flat.set_weights(layer.get_weights())
    found = output_of(layer, [images]).reshape(6, 5, D)
    expected = output_of(flat, [images.reshape(6, 5, D)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "kind"),
    [("half", "sequential"), ("alibi", "functional"), ("relative", "functional")],
)
def test_models_train_and_come_back(position, kind, tmp_path):
    """`fit()` on a batch of any length changes every weight; the file predicts the same."""
    options = {name: SWITCHES[name] for name in SWITCHES}
    layer = GroupQueryAttention(H, N, K, position=POSITIONS[position](), **options)
    if kind == "sequential":
        model = keras.Sequential([keras.Input((None, D)), layer])
    else:
        inputs = keras.Input((None, D))
        segments = keras.Input((None,), dtype="int32")
        model = keras.Model([inputs, segments], layer(inputs, segment_ids=segments))
    randomize(layer)
    before = [to_numpy(weight.value) for weight in layer.trainable_weights]
    x = X if kind == "sequential" else [X, SEGMENTS]
    model.compile("sgd", "mse", jit_compile=JIT)
    model.fit(x, UPSTREAM, verbose=0)
    for weight, old in zip(layer.trainable_weights, before, strict=True):
        # A bias of all keys changes no softmax, unless positions turn it.
        if not weight.path.endswith("key/bias"):
            assert np.abs(to_numpy(weight.value) - old).max() > 0, weight.path
    expected = expected_output(layer, X, segments=None if kind == "sequential" else SEGMENTS)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=2e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_low_precision_options_stay_close():
    """bfloat16 inputs and weights: no option loses more than the dtype itself."""
    for position in POSITIONS:
        layer = GroupQueryAttention(
            H,
            N,
            K,
            position=POSITIONS[position](),
            dtype="mixed_bfloat16",
            **SWITCHES,
        )
        layer.build((B, T, D))
        randomize(layer, seed=3)
        found = output_of(layer, [X])
        expected = expected_output(layer, X)
        assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()


# What makes no sense ----------------------------------------------------------------------


class Overridden(GroupQueryAttention):
    """As a subclass of Keras's layer might."""

    def _compute_attention(self, query, key, value, attention_mask=None, **options):
        return super()._compute_attention(query, key, value, attention_mask)


@pytest.mark.parametrize(
    ("options", "called", "name"),
    [
        ({"position": AlibiPosition()}, {}, "attention_bias` or a `position` with biases"),
        ({}, {"attention_bias": BIAS}, "attention_bias"),
        ({"logit_soft_cap": 2.0}, {}, "logit_soft_cap"),
        ({"attention_sink": True}, {}, "attention_sink"),
    ],
)
def test_an_overridden_attention_cannot_lose_options(options, called, name):
    layer = Overridden(H, N, K, **options)
    with pytest.raises(ValueError, match=f"(?s)overrides.*{name}.*would be lost. Leave it"):
        call(layer, [X], **called)
    # What it is told of, it honours.
    fine = Overridden(H, N, K, position=RotaryPosition(), qk_norm=True, use_causal_mask=True)
    fine.build((B, T, D))
    randomize(fine)
    np.testing.assert_allclose(output_of(fine, [X]), expected_output(fine, X), atol=1e-5)


def test_segments_need_self_attention():
    layer = MultiHeadAttention(3, H)
    with pytest.raises(ValueError, match=r"`segment_ids` are for self-attention.*attention_mask"):
        call(layer, [X, X[:, :5]], segment_ids=SEGMENTS)


def test_rotary_needs_pairs():
    with pytest.raises(ValueError, match=r"even.*head size 7"):
        MultiHeadAttention(3, 7, position=RotaryPosition()).build((B, T, D))


def test_everything_public_is_exported():
    for name in ("RotaryPosition", "AlibiPosition", "RelativePosition", "pack_sequences"):
        assert name in kerasattention.__all__
