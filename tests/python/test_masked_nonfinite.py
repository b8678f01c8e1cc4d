"""NaN and infinity in masked-out keys and values reach neither outputs nor gradients."""

import contextlib
import dataclasses
import functools

import keras
import numpy as np
import pytest

import kerasattention
from backends import BACKEND, tensor, to_numpy, value_and_gradients
from decoding_models import attending, model_of
from kerasattention import scaled_dot_product_attention
from kerasattention.attend import poisoned_rows
from problems import PROBLEMS, SMALL_BLOCK, B, G, H, K, N, S, T, block_size, kernel, problem

CLOSE = {"rtol": 1e-5, "atol": 5e-6}
POISON = np.array([np.nan, np.inf, -np.inf])

GIVEN = PROBLEMS | {
    "causal, all see the first": problem(T=S, mask_fields={"causal": True}),
    "window, many blocks": problem(K=1, G=2, T=29, S=29, mask_fields={"causal": True, "window": 5}),
    "padding, window": problem(
        K=1, G=2, T=29, S=29, mask_fields={"window": 3, "key_mask": np.arange(29) < [[29], [17]]}
    ),
    "bias of minus infinity, causal": problem(
        bias=np.where(np.random.default_rng(3).random((B, N, T, S)) < 0.3, -np.inf, 0.5),
        mask_fields={"causal": True},
    ),
}
MASKS = [
    "causal, all see the first",
    "causal from an offset",
    "window",
    "window, many blocks",
    "padding, window",
    "positions of each sample",
    "padded queries and keys, causal",
    "a sample of padding",
    "segments, causal",
    "mask (B, N, T, S), padding, causal",
    "mask of one for all",
    "mask with empty rows",
    "sink, empty rows",
    "bias of minus infinity, causal",
    "dropout, window, causal",
    "all at once",
]


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """A problem with non-finite numbers, and the output of the queries that see none of them.

    NaN and infinity are in all keys that are masked out, in the last visible key (in turn in its
    key, its value and both), and in the queries that see no key or a poisoned one.
    """

    inputs: dict
    clean: np.ndarray  # (B, T, N): queries that see no poison
    key_clean: np.ndarray  # (B, N, T): queries that see no poisoned key
    upstream: np.ndarray
    gradients: dict


@functools.cache
def poisoned(name):
    given = GIVEN[name]
    seen, kv_heads = given.seen, given.key.shape[2]
    if given.bias is not None:
        bias = np.broadcast_to(given.bias, seen.shape)
        seen = seen & (bias != -np.inf)
    b, n, t, s = seen.shape
    shared = seen.reshape(b, kv_heads, n // kv_heads, t, s).any((2, 3))  # (B, K, S)
    bad = ~shared
    for index in np.ndindex(b, kv_heads):
        if shared[index].any():
            bad[(*index, np.flatnonzero(shared[index])[-1])] = True
    turn = np.cumsum(bad.reshape(-1)).reshape(bad.shape)
    in_key, in_value = bad & (turn % 3 != 0), bad & (turn % 3 != 1)

    def without(where):
        return ~(seen & np.repeat(where, n // kv_heads, axis=1)[:, :, None]).any(-1)  # (B, N, T)

    clean = without(bad)
    inputs = {name: x.copy() for name, x in given.trainable().items()}
    _put(inputs["key"], in_key.transpose(0, 2, 1))
    _put(inputs["value"], in_value.transpose(0, 2, 1))
    _put(inputs["query"], (~clean | ~seen.any(-1)).transpose(0, 2, 1))
    rows = clean.transpose(0, 2, 1)
    upstream = given.upstream * rows[..., None]
    twin = dataclasses.replace(given)
    twin.__dict__ |= {"upstream": upstream, "expected": given.expected, "seen": given.seen}
    key_clean = without(in_key) & (clean | ~seen.any(-1))
    return Poisoned(inputs, rows, key_clean, upstream, twin.expected_gradients)


def _put(x, where):
    """Poison in some of the places' numbers, of all kinds by turns."""
    places = np.argwhere(where)
    for turn, place in enumerate(places):
        x[tuple(place)][turn % 2 :: 2] = POISON[turn % 3]


def differentiated(function, inputs, upstream, mode):
    """Output and gradients, on TensorFlow eagerly, in a graph or compiled by XLA.

    On JAX compiled as a whole, or op by op.
    """
    if mode in ("eager", "op by op"):
        return value_and_gradients(function, inputs, upstream, as_one=mode == "eager")
    import tensorflow as tf

    @tf.function(jit_compile=mode == "xla", autograph=False)
    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(**inputs)
            loss = tf.reduce_sum(outputs[0] * upstream)
        return outputs, tape.gradient(loss, inputs)

    outputs, gradients = run(inputs)
    return [to_numpy(x) for x in outputs], {name: to_numpy(x) for name, x in gradients.items()}


def check(name, mode="eager", **options):
    given, here = GIVEN[name], poisoned(name)
    inputs = {name: tensor(x) for name, x in here.inputs.items()}

    def attend(**values):
        found = given.attend(**values, **options)
        return found if isinstance(found, tuple) else (found,)

    (output, *scores), gradients = differentiated(attend, inputs, tensor(here.upstream), mode)
    expected, weights = given.expected
    np.testing.assert_allclose(output[here.clean], expected[here.clean], **CLOSE)
    assert np.isnan(output[~here.clean]).all()
    if scores:
        # Those depend on the keys alone.
        clean = here.key_clean
        np.testing.assert_allclose(scores[0][clean], weights[clean], **CLOSE)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, here.gradients[name], **CLOSE, err_msg=f"d {name}")


# Of JAX and TensorFlow, whose compilers take long, those that between them have each mask.
PLAIN = MASKS if BACKEND == "torch" else MASKS[::3]
BLOCKED = MASKS if BACKEND == "torch" else MASKS[1::5]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_and_scores(name):
    check(name, implementation="plain", return_scores=True)


@pytest.mark.parametrize("name", BLOCKED)
def test_blocked(name):
    with block_size(SMALL_BLOCK):
        check(name, implementation="blocked")


def test_queries_are_searched_in_blocks(monkeypatch):
    """Longer problems are searched block by block, here of 5 of 13 queries."""
    monkeypatch.setattr(poisoned_rows, "BLOCK", 5)
    monkeypatch.setattr(poisoned_rows, "WHOLE", 0)
    name = "segments, causal"
    check(name, "eager" if BACKEND != "tensorflow" else "graph", implementation="plain")


if BACKEND == "torch":
    FUSED = [x for x in MASKS if GIVEN[x].rate == 0.0 and GIVEN[x].bias is None]
    CASES = [(x, public) for x in FUSED for public in (False, True)]

    @pytest.mark.parametrize(
        ("name", "public"), [x for x in CASES if x != ("sink, empty rows", True)]
    )  # the public function takes no sink
    def test_fused(name, public):
        from kerasattention.attend.kernels.torch import sdpa

        check(name, implementation=kernel(sdpa.sdpa_attention) if public else "fused")


if BACKEND == "tensorflow":
    GRAPHS = [
        ("padded queries and keys, causal", "plain", "graph"),
        ("padded queries and keys, causal", "plain", "xla"),
        ("window, many blocks", "blocked", "xla"),
        ("all at once", "blocked", "graph"),
    ]

    @pytest.mark.parametrize(("name", "implementation", "mode"), GRAPHS)
    def test_graphs(name, implementation, mode):
        with block_size(SMALL_BLOCK):
            check(name, mode, implementation=implementation)


if BACKEND == "jax":

    @pytest.mark.parametrize("implementation", ["plain", "blocked"])
    def test_gradients_that_are_not_compiled(implementation):
        with block_size(SMALL_BLOCK):
            check("segments, causal", "op by op", implementation=implementation)


def float64_of(dtype):
    """JAX has float64 where it is switched on alone."""
    if BACKEND != "jax" or dtype != "float64":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)


# Precision ------------------------------------------------------------------------------


if BACKEND == "jax":

    def test_gradients_by_numpy_arrays_that_are_not_compiled():
        import jax

        x = np.random.default_rng(5).normal(size=(2, 5, 4)).astype("float32")
        poisoned = x.copy()
        poisoned[:, 3:] = np.nan
        layer = kerasattention.MultiHeadAttention(2, 3, use_causal_mask=True)
        layer(x)
        expected = jax.jit(jax.grad(lambda x: layer(x)[:, :3].sum()))(x)
        for given in (x, poisoned):
            found = jax.grad(lambda x: layer(x)[:, :3].sum())(given)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("implementation", ["plain", "blocked", None])
def test_masked_poison_changes_nothing_in_any_precision(dtype, implementation):
    rng = np.random.default_rng(1)
    query, key, value = (rng.normal(size=(B, T, heads, H)) for heads in (K * G, K, K))
    key[:, -2:] = value[:, -2:] = 0.0
    upstream = rng.normal(size=(B, T, K * G, H))
    upstream[:, -2:] = 0.0

    def attend(query, key, value):
        options = {"causal": True, "implementation": implementation}
        return (scaled_dot_product_attention(query, key, value, **options),)

    def found(key, value):
        inputs = {"query": query, "key": key, "value": value}
        inputs = {name: tensor(x, dtype) for name, x in inputs.items()}
        return value_and_gradients(attend, inputs, tensor(upstream))

    with float64_of(dtype):
        (expected,), gradients = found(key, value)
        key[:, -2:], value[:, -1] = np.inf, np.nan
        (output,), poisoned_gradients = found(key, value)
    np.testing.assert_allclose(output[:, :-2], expected[:, :-2], rtol=1e-6)
    assert np.isnan(output[:, -2:]).all()
    for name, x in poisoned_gradients.items():
        np.testing.assert_allclose(x, gradients[name], rtol=1e-6, err_msg=f"d {name}")


# Layers ---------------------------------------------------------------------------------

D = 5
OF_QUERY = np.arange(7) < [[7], [4]]
OF_VALUE = np.arange(11) < [[8], [11]]


def layer_results(layer, given, masks, upstream):
    """For each of the inputs given: output, gradients of the inputs and of the weights."""
    weights = layer.trainable_variables

    def apply(values):
        return layer(**{name: x for name, x in values.items() if "/" not in name}, **masks)

    def loss(values):
        state = [(w, values[w.path]) for w in weights]
        with keras.StatelessScope(state_mapping=state):
            output = apply(values)
        return keras.ops.sum(keras.ops.cast(output, "float32") * upstream), output

    def on_jax(inputs):
        (_, output), found = differentiated(inputs | {w.path: w.value for w in weights})
        return output, found

    def on_tensorflow(inputs):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = apply(inputs)
            total = tf.reduce_sum(tf.cast(output, "float32") * upstream)
        found, of_weights = tape.gradient(total, (inputs, [w.value for w in weights]))
        return output, found | dict(zip([w.path for w in weights], of_weights, strict=True))

    def on_torch(inputs):
        layer.zero_grad()
        inputs = {name: x.detach().clone().requires_grad_(True) for name, x in inputs.items()}
        output = apply(inputs)
        (output * upstream).sum().backward()
        grads = {name: x.grad for name, x in inputs.items()}
        return output.detach(), grads | {w.path: w.value.grad for w in weights}

    if BACKEND == "jax":
        import jax

        differentiated = jax.jit(jax.value_and_grad(loss, has_aux=True))
    run = {"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}[BACKEND]
    results = [run(inputs) for inputs in given]
    return [(to_numpy(y), {n: to_numpy(x) for n, x in found.items()}) for y, found in results]


LAYERS = {
    "padded queries and values": ({"use_gate": True, "qk_norm": True}, {}),
    "plain path": ({"flash_attention": False, "attention_sink": True}, {}),
    "masks of the key, causal": ({"use_causal_mask": True, "position": "rotary"}, {"own": True}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_padding_of_a_layer_reaches_no_gradient(name):
    options, case = LAYERS[name]
    layer = layer_of(options)
    rng = np.random.default_rng(2)
    inputs = {"query": rng.normal(size=(2, 7, D)), "value": rng.normal(size=(2, 11, D))}
    masks = {"query_mask": tensor(OF_QUERY), "value_mask": tensor(OF_VALUE)}
    if case:
        inputs["key"] = rng.normal(size=(2, 11, D))
        masks["key_mask"] = masks.pop("value_mask")
    padding = {"query": ~OF_QUERY, "value": ~OF_VALUE, "key": ~OF_VALUE}
    upstream = tensor(rng.normal(size=(2, 7, D)))
    given = []
    for poison in (0.0, np.nan, np.inf):
        for of, x in inputs.items():
            x[padding[of]] = poison
        given.append({name: tensor(x) for name, x in inputs.items()})
    layer(**given[0], **masks)
    (expected, gradients), *others = layer_results(layer, given, masks, upstream)
    for output, found in others:
        np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-7)
        check_gradients(found, gradients)


def check_gradients(found, expected):
    assert found.keys() == expected.keys()
    for of, x in found.items():
        np.testing.assert_allclose(x, expected[of], rtol=1e-6, atol=1e-7, err_msg=of)


# Options of the layer and of the call, and the keys that are masked out.
UNSEEN = {
    "causal, more keys than queries": ({"qk_norm": True}, {"use_causal_mask": True}, 7),
    "mask": ({"use_gate": True}, {"attention_mask": np.arange(11) < np.full((7, 1), 8)}, 8),
    "mask of the value": ({"use_bias": False}, {"value_mask": np.arange(11) < [[8], [8]]}, 8),
    "window": ({"sliding_window": 2, "position": "rotary"}, {}, 8),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in UNSEEN), ("mask", "bfloat16")]
)
def test_masked_out_keys_reach_no_gradient_of_a_layer(name, dtype):
    """The gradient x^T dk of a kernel is NaN where x is, although dk is zero."""
    options, call, first = UNSEEN[name]
    layer = layer_of({**options, "dtype": dtype})
    masks = {of: tensor(x) if isinstance(x, np.ndarray) else x for of, x in call.items()}
    rng = np.random.default_rng(6)
    query, value = tensor(rng.normal(size=(2, 7, D)), dtype), rng.normal(size=(2, 11, D))
    given = []
    for poison in (0.0, np.nan):
        value[:, first:, ::2] = poison
        given.append({"query": query, "value": tensor(value, dtype)})
    layer(**given[0], **masks)
    upstream = tensor(rng.normal(size=(2, 7, D)))
    (expected, gradients), (output, found) = layer_results(layer, given, masks, upstream)
    np.testing.assert_array_equal(output, expected)
    check_gradients(found, gradients)


def layer_of(options):
    position = {"position": kerasattention.RotaryPosition()} if "position" in options else {}
    return kerasattention.GroupQueryAttention(4, 6, 2, **{**options, **position})


def test_later_steps_without_a_loss_reach_no_gradient_of_a_layer():
    """And one with a loss makes gradients of all weights NaN or infinite, none wrong."""
    layer = layer_of({"use_causal_mask": True, "use_gate": True, "qk_norm": True})
    x = np.random.default_rng(7).normal(size=(2, 7, D))
    given = []
    for poison in (0.0, np.nan):
        x[:, 4:, 1:] = poison
        given.append({"query": tensor(x)})
    layer(**given[0])
    upstream = np.random.default_rng(8).normal(size=(2, 7, D)) * (np.arange(7) < 4)[:, None]
    (expected, gradients), (output, found) = layer_results(layer, given, {}, tensor(upstream))
    np.testing.assert_allclose(output[:, :4], expected[:, :4], rtol=1e-6)
    assert np.isnan(output[:, 4:]).all()
    check_gradients(found, gradients)
    upstream[:, 5] = 1.0
    (_, found), _ = layer_results(layer, given[1:] * 2, {}, tensor(upstream))
    assert all(not np.isfinite(x).all() for x in found.values()), found


def test_keras_masks_and_later_steps_reach_no_gradient():
    """A mask that the input carries, and steps that a causal query does not see."""
    masked = keras.Sequential([keras.layers.Masking(-9.0), _layer(use_causal_mask=True)])
    x = np.random.default_rng(3).normal(size=(2, 7, D))
    x[0, 5:] = -9.0
    upstream = np.random.default_rng(4).normal(size=(2, 7, D))
    upstream[1, 3:] = 0.0
    masked(tensor(x))  # builds it, outside of what JAX traces
    results = []
    for poison in (0.0, np.nan, -np.inf):
        x[1, 3:] = poison
        given = {"query": tensor(x)}

        def apply(query):
            return (masked(query),)

        (output,), found = value_and_gradients(apply, given, tensor(upstream))
        results.append((output[0], output[1, :3], found["query"][0], found["query"][1, :3]))
    for parts in results[1:]:
        for part, expected in zip(parts, results[0], strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)


def _layer(**options):
    return kerasattention.MultiHeadAttention(3, 4, **options)


# Decoding -------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 4])
def test_padding_and_earlier_sequences_leave_nothing_in_caches(window):
    """Token 0 has no finite embedding: it is what fills prompts up."""
    model = model_of(attending(sliding_window=window))
    embedding = model.layers[1]
    rows = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5]]
    steps = np.array([[8, 9, 7], [9, 3, 2], [3, 8, 4], [6, 2, 6]])
    found = []
    for poison in (1.0, np.nan):
        table = to_numpy(embedding.embeddings.value).copy()
        table[0] = poison
        embedding.embeddings.assign(table)
        decoder = kerasattention.IncrementalDecoder(model, 3, 16)
        first = to_numpy(decoder.prefill([[1, 2, 0, 3, 4, 5, 6, 7]] * 3))
        # Token 0 is a real one here, which the last one sees where no window ends before.
        assert np.isnan(first).all() == (window is None and not np.isfinite(poison))
        decoder.reset()
        logits = [decoder.prefill(rows), *(decoder.step(step) for step in steps)]
        logits.append(decoder.step(steps.T[:, :3]))
        found.append([to_numpy(x) for x in logits])
    for part, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-5)
