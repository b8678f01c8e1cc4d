"""The contract of the layers where users meet it: in whole models, symbolic and eager.

The rules are those of the package's documentation. What the engine does block by block is in
`test_attend.py`, numbers against Keras's layers in `test_against_keras.py`.
"""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kerasattention
from backends import BACKEND, JIT, run, tensor, to_numpy
from decoding_models import full_pass
from kerasattention import GroupQueryAttention, MultiHeadAttention
from kerasattention._keras import get_keras_mask, set_keras_mask
from layer_reference import attention_layer
from layer_twins import KINDS, call, random_inputs, randomize, weights_of

B, T, S, D, N, H = 3, 5, 7, 11, 4, 8
BOTH = pytest.mark.parametrize("kind", ["mha", "gqa"])
IDS = np.array([[3, 1, 2, 0, 0], [4, 2, 5, 0, 0], [1, 2, 3, 4, 4]])
LENGTHS = [3, 3, 5]


def layer_of(kind, **options):
    if kind == "mha":
        return MultiHeadAttention(N, H, **options)
    return GroupQueryAttention(H, N, 2, **options)


def random_weights(model):
    randomize(model)
    return model


# Rule 1: TRUE is attend, and a mask has four shapes ------------------------------

MASKS = {
    "(T, S)": (T, S),
    "(B, T, S)": (B, T, S),
    "(B, 1, T, S)": (B, 1, T, S),
    "(B, N, T, S)": (B, N, T, S),
}


@BOTH
@pytest.mark.parametrize("name", ["attention_mask", "attention_bias"])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS.keys())
def test_masks_and_biases_broadcast(kind, name, shape):
    query, value = random_inputs((B, T, D), (B, S, D))
    rng = np.random.default_rng(4)
    given = rng.normal(size=shape).astype("float32")
    if name == "attention_mask":
        given = given > 0.0
    layer = layer_of(kind)
    layer.build(query.shape, value.shape)
    randomize(layer)
    output, scores = call(layer, [query, value], **{name: given}, return_attention_scores=True)
    full = given[:, None] if given.ndim == 3 else given
    full = np.broadcast_to(full, (B, N, T, S))
    reference = {"mask": full} if name == "attention_mask" else {"bias": full}
    wanted, wanted_scores = attention_layer(weights_of(layer), query, value, **reference)
    np.testing.assert_allclose(to_numpy(output), wanted, atol=1e-5)
    np.testing.assert_allclose(to_numpy(scores), wanted_scores, atol=1e-5)


# Rule 2: masks arrive from anywhere ------------------------------------------------


def with_embedding(kind, mean):
    """Ids to attention; the last layer is one that drops padding if the mask reaches it."""
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(6, D, mask_zero=True)(ids)
    x = layer_of(kind)(x, use_causal_mask=True)
    x = layer_of(kind)(x)
    return random_weights(keras.Model(ids, keras.layers.GlobalAveragePooling1D()(x) if mean else x))


@BOTH
def test_padding_of_an_embedding_changes_nothing(kind):
    model = with_embedding(kind, mean=True)
    padded = full_pass(model, IDS)
    for row, length in enumerate(LENGTHS):
        alone = full_pass(model, IDS[row : row + 1, :length])
        np.testing.assert_allclose(padded[row : row + 1], alone, atol=1e-5)


@BOTH
def test_padding_is_heeded_in_predict_and_in_sequential(kind):
    functional = with_embedding(kind, mean=True)
    sequential = keras.Sequential(
        [
            keras.layers.Embedding(6, D, mask_zero=True),
            layer_of(kind, use_causal_mask=True),
            layer_of(kind),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    sequential.build((None, T))
    sequential.set_weights(functional.get_weights())
    wanted = full_pass(functional, IDS)
    np.testing.assert_allclose(functional.predict(IDS, verbose=0), wanted, atol=1e-5)
    np.testing.assert_allclose(sequential.predict(IDS, verbose=0), wanted, atol=1e-5)


@BOTH
def test_training_on_padded_rows_is_training_on_short_ones(kind):
    """The loss and every weight after a step: padding has no gradient."""
    padded, short = (with_embedding(kind, mean=True) for _ in range(2))
    short.set_weights(padded.get_weights())
    target = np.random.default_rng(1).normal(size=(1, D))
    for model, ids in ((padded, IDS[1:2]), (short, IDS[1:2, :3])):
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=JIT)
        model.fit(ids, target, verbose=0)
    for one, other in zip(padded.get_weights(), short.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@BOTH
def test_masking_layers_of_query_and_value(kind):
    query, value = random_inputs((B, T, D), (B, S, D))
    value_lengths = [4, 4, 7]
    for row, (length, values) in enumerate(zip(LENGTHS, value_lengths, strict=True)):
        query[row, length:], value[row, values:] = 0.0, 0.0
    inputs = keras.Input((None, D)), keras.Input((None, D))
    masked = [keras.layers.Masking()(x) for x in inputs]
    outputs = layer_of(kind)(*masked)
    model = random_weights(keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(outputs)))
    whole = full_pass(model, query, value)
    for row, (length, values) in enumerate(zip(LENGTHS, value_lengths, strict=True)):
        alone = full_pass(model, query[row : row + 1, :length], value[row : row + 1, :values])
        np.testing.assert_allclose(whole[row : row + 1], alone, atol=1e-5)


@BOTH
def test_the_output_carries_the_mask_of_the_query_and_inputs_keep_theirs(kind):
    query, value = (tensor(x) for x in random_inputs((B, T, D), (B, S, D)))
    masks = np.arange(T) < np.array(LENGTHS)[:, None], np.arange(S) < np.array([7, 1, 4])[:, None]
    for x, mask in zip((query, value), masks, strict=True):
        set_keras_mask(x, tensor(mask))
    output = layer_of(kind)(query, value)
    for x, mask in zip((output, query, value), (masks[0], *masks), strict=True):
        np.testing.assert_array_equal(to_numpy(get_keras_mask(x)), mask)


# Rule 3: nothing to attend is zero -------------------------------------------------


@BOTH
@pytest.mark.parametrize("options", [{}, {"sliding_window": 2}, {"use_gate": True}], ids=str)
def test_a_row_without_keys_is_the_bias_of_the_output(kind, options):
    layer = layer_of(kind, **options)
    x = random_inputs((B, T, D))[0]
    layer.build(x.shape)
    randomize(layer)
    mask = np.ones((B, T, T), dtype=bool)
    mask[1, 2] = mask[2] = False
    output, scores = call(layer, [x], attention_mask=mask, return_attention_scores=True)
    bias = weights_of(layer)["attention_output/bias"]
    np.testing.assert_array_equal(to_numpy(output)[1, 2], bias)
    np.testing.assert_array_equal(to_numpy(output)[2], np.tile(bias, (T, 1)))
    np.testing.assert_array_equal(to_numpy(scores)[2], 0.0)


# Rule 4: causality compares positions ------------------------------------------------


@BOTH
@pytest.mark.parametrize("lengths", [(T, T), (T, S), (S, T)], ids=str)
def test_the_future_has_no_influence(kind, lengths):
    """Changing value j moves query i only where j <= i."""
    query, value = random_inputs((1, lengths[0], D), (1, lengths[1], D))
    layer = layer_of(kind)
    layer.build(query.shape, value.shape)
    randomize(layer)
    before = to_numpy(call(layer, [query, value], use_causal_mask=True))
    for j in range(lengths[1]):
        changed = value.copy()
        changed[0, j] += 1.0
        after = to_numpy(call(layer, [query, changed], use_causal_mask=True))
        moved = np.abs(after - before)[0].max(axis=-1) > 1e-6
        np.testing.assert_array_equal(moved, np.arange(lengths[0]) >= j)


# Rules 7 and 8: speed may change, the output may not --------------------------------


@BOTH
def test_scores_dropout_at_rest_and_flash_attention_change_nothing(kind):
    x = random_inputs((B, T, D))[0]
    plain = layer_of(kind, flash_attention=False)
    plain.build(x.shape)
    randomize(plain)
    mask = np.random.default_rng(2).random((B, T, T)) < 0.7
    for causal in (False, True):
        arguments = {"attention_mask": mask, "use_causal_mask": causal}
        wanted = to_numpy(call(plain, [x], **arguments))
        for flash, dropout, scores in itertools.product(
            (None, False, True), (0.0, 0.5), (False, True)
        ):
            layer = layer_of(kind, flash_attention=flash, dropout=dropout)
            layer.build(x.shape)
            layer.set_weights(
                plain.get_weights()
                + [w for w in layer.get_weights() if dropout and w.dtype == "uint32"]
            )
            if flash and scores:
                with pytest.raises(ValueError, match="return_attention_scores"):
                    call(layer, [x], **arguments, return_attention_scores=True)
                continue
            result = call(layer, [x], **arguments, return_attention_scores=scores)
            result = result[0] if scores else result
            np.testing.assert_allclose(to_numpy(result), wanted, atol=1e-5)


# Symbolic and eager say the same ----------------------------------------------------


@st.composite
def any_call(draw):
    """A layer of any options and inputs that fit it: (layer, inputs, call arguments)."""
    groups, key_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = 2 * draw(st.integers(1, 4))
    options = {
        "use_bias": draw(st.booleans()),
        "use_gate": draw(st.sampled_from([False, True, "head"])),
        "qk_norm": draw(st.sampled_from([False, True, {"over": "width", "after_position": True}])),
        "scale": draw(st.sampled_from([None, 0.7, "learned"])),
        "attention_sink": draw(st.booleans()),
        "logit_soft_cap": draw(st.sampled_from([None, 5.0])),
        "sliding_window": draw(st.sampled_from([None, 2])),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
        "dtype": draw(st.sampled_from(["float32", "mixed_bfloat16"])),
    }
    between = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    axis = len(between) + 1
    if draw(st.booleans()):
        options |= {
            "num_heads": groups,
            "key_dim": size,
            "value_dim": draw(st.sampled_from([None, 3])),
            "output_shape": draw(st.sampled_from([None, 5, (2, 3)])),
            "attention_axes": axis,
        }
        layer = MultiHeadAttention(**options)
        query = (
            draw(st.integers(1, 3)),
            *between,
            draw(st.integers(1, 5)),
            draw(st.integers(1, 6)),
        )
        value = (*query[:-2], draw(st.integers(1, 5)), draw(st.integers(1, 6)))
    else:
        layer = GroupQueryAttention(size, groups * key_heads, key_heads, **options)
        query = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6)))
        value = (query[0], draw(st.integers(1, 5)), query[2])
    shapes = [query] if draw(st.booleans()) else [query, value]
    arguments = {
        "use_causal_mask": draw(st.booleans()),
        "return_attention_scores": draw(st.booleans()),
        "training": draw(st.booleans()),
    }
    return layer, shapes, arguments


def called(layer, shapes, arguments):
    """What a built layer gives for random inputs; on JAX compiled as a whole."""
    weights = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]

    def function(*inputs):
        return layer.stateless_call(weights, rest, *inputs, **arguments)[0]

    return run(function, *(tensor(x) for x in random_inputs(*shapes)))


# JAX compiles each example anew, which takes seconds.
@settings(
    max_examples=4 if BACKEND == "jax" else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(any_call())
def test_symbolic_shapes_and_dtypes_are_the_real_ones(drawn):
    layer, shapes, arguments = drawn
    symbols = [keras.Input(shape[1:], batch_size=shape[0]) for shape in shapes]
    symbolic = layer(*symbols, **arguments)
    eager = called(layer, shapes, arguments)
    if not arguments["return_attention_scores"]:
        symbolic, eager = [symbolic], [eager]
        assert layer.compute_output_shape(*shapes) == eager[0].shape
    for symbol, real in zip(symbolic, eager, strict=True):
        assert tuple(symbol.shape) == tuple(real.shape)
        assert symbol.dtype == keras.backend.standardize_dtype(real.dtype)
        assert np.isfinite(to_numpy(real)).all()


@BOTH
@pytest.mark.parametrize("unknown", [(None, T), (None, None)], ids=str)
def test_models_of_unknown_sizes(kind, unknown):
    """Batch and length free: each call is that of a model built for its sizes."""
    inputs = keras.Input(batch_shape=(*unknown, D))
    layer = layer_of(kind)
    model = random_weights(keras.Model(inputs, layer(inputs, use_causal_mask=True)))
    assert model.output_shape == (*unknown, D)
    for batch, length in ((B, T), (2, T if unknown[1] else 4)):
        x = random_inputs((batch, length, D))[0]
        wanted, _ = attention_layer(weights_of(layer), x, causal=True)
        np.testing.assert_allclose(model.predict(x, verbose=0), wanted, atol=1e-5)


# What the rules hold for -----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_of_keras_is_one_of_ours(kind):
    import inspect

    theirs, ours = (inspect.signature(make.__init__).parameters for make in KINDS[kind])
    assert set(theirs) <= set(ours)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
    theirs, ours = (inspect.signature(make.call).parameters for make in KINDS[kind])
    # query and value, in the order of the arguments; ours lets value be left out
    assert list(ours)[: len(theirs)] == list(theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_ours_are_not_subclasses_of_keras(kind):
    theirs, ours = KINDS[kind]
    assert not issubclass(ours, theirs)
    assert ours.__module__.startswith(kerasattention.__name__)
