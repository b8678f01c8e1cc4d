"""Positions that are real numbers, against the float64 reference, by both kernels."""

import keras
import numpy as np
import pytest

import kerasattention as ka
import option_checks as checks
from backends import BACKEND, JIT, compiled, predicted, sampled, tensor, to_numpy
from kerasattention import ScaleByPosition
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from kerasattention.layers.real_positions import RealPositions, _check_order, hide_real
from layer_twins import call
from option_checks import D, grouped
from problems import block_size
from test_options import POSITIONS, SWITCHES, B, T, X, expected_output, make

# Of eighths, whose differences are exact in float32; some equal, in no order.
REAL = np.random.default_rng(3).integers(-30, 90, (B, T)) / 8.0
REAL[:, 4] = REAL[:, 7]


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("position", sampled(POSITIONS, 2))
def test_real_positions_are_those_of_the_reference(position, flash):
    switches = {"use_causal_mask", "sliding_window", "attention_sink"}
    layer = make(position, switches, flash)
    expected = expected_output(layer, X, positions=REAL)
    given = REAL.astype("float32")
    with block_size(4):
        found = to_numpy(call(layer, [X], positions=given))
        as_float64 = to_numpy(layer(tensor(X), positions=REAL))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(as_float64, expected, atol=1e-5)
    # Rounded to integers, as they once were, the result is another.
    wrong = to_numpy(call(layer, [X], positions=REAL.astype(int)))
    assert np.abs(wrong - expected).max() > 1e-2


@pytest.mark.parametrize("position", sampled(POSITIONS, 2))
def test_whole_numbers_are_the_same_as_integers(position):
    layer = make(position, SWITCHES)
    whole = np.random.default_rng(5).integers(0, 20, (1, T))
    expected = to_numpy(call(layer, [X], positions=whole))
    found = to_numpy(call(layer, [X], positions=whole.astype("float32")))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradients_and_scales_by_real_positions():
    scale = ScaleByPosition("log", length=2)
    positions = np.random.default_rng(4).integers(0, 90, (checks.B, checks.T)) / 8.0

    def make(**options):
        return grouped(position=ka.RotaryPosition(theta=50.0), query_scale=scale, **options)

    wanted = {
        "rotary": 50.0,
        "query_scale": lambda at: max(1.0, np.log(at + 1) / np.log(2)),
    }
    given = positions.astype("float32")
    checks.check_against_reference(make, wanted, positions=given)


def test_queries_at_real_positions_attend_keys_at_whole_ones():
    """In cross-attention keys stand at 0, 1, ..."""
    at = np.random.default_rng(4).integers(0, 90, (checks.B, checks.T)) / 8.0
    for flash in (False, True):
        layer = grouped(flash_attention=flash, position=ka.AlibiPosition())
        inputs = checks.inputs_of(cross=True)
        checks.with_weights(layer, [x.shape for x in inputs.values()])
        given = {name: tensor(x) for name, x in inputs.items()}
        options = {"return_attention_scores": True} if not flash else {}
        found = layer(**given, positions=at, use_causal_mask=True, **options)
        if not flash:
            output, scores = map(to_numpy, found)
            seen = np.arange(checks.S) <= at[:, :, None]
            np.testing.assert_array_equal(scores > 0, np.broadcast_to(seen[:, None], scores.shape))
        else:
            np.testing.assert_allclose(to_numpy(found), output, atol=1e-5)


# Precision --------------------------------------------------------------------------------------


def test_minutes_in_days_since_1970():
    """Float64 keeps them; where there is none, equal ones are refused."""
    minutes = np.arange(checks.T)[None] / 1440.0
    layer = grouped(position=ka.RotaryPosition(), use_causal_mask=True)
    x = tensor(checks.inputs_of(cross=False)["query"])
    expected = to_numpy(layer(x, positions=minutes))
    far = minutes + 20000.0
    if BACKEND == "jax":
        with pytest.raises(ValueError, match=r"float32 can tell apart: subtract the earliest"):
            layer(x, positions=far)
        return
    np.testing.assert_allclose(to_numpy(layer(x, positions=far)), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_layers_of_low_precision_do_not_round_positions(dtype):
    """1000 + t / 8 would be one number in bfloat16, and all tokens see each other."""
    layer = grouped(use_causal_mask=True, dtype=dtype, position=ka.RotaryPosition())
    x = tensor(checks.inputs_of(cross=False)["query"])
    at = 1000 + np.arange(checks.T)[None] / 8.0
    _, scores = layer(x, positions=at, return_attention_scores=True)
    later = np.triu(np.ones((checks.T, checks.T), bool), 1)
    assert (to_numpy(scores)[..., later] == 0).all()
    assert (to_numpy(scores)[..., ~later] > 0).all()
    # By place, where the layer hands all arguments to Keras by name.
    by_place = layer(x, x, *[None] * 5, True, None, True, None, None, at)[1]
    np.testing.assert_array_equal(to_numpy(by_place), to_numpy(scores))
    inputs, positions = keras.Input((None, D)), keras.Input((None,))
    with pytest.raises(ValueError, match=r"to which Keras would round.*dtype='float32'"):
        layer(inputs, positions=positions)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.zeros((1, checks.T), "float16"), "must be float32 or float64"),
        (np.full((1, checks.T), np.nan), "`positions` must be finite. Received: nan"),
        (np.zeros((1, checks.T), bool), "`positions` must be integers, or real numbers"),
        (np.zeros((1, 3)), r"`positions` must have shape \(B, T\)"),
    ],
)
def test_positions_that_do_not_fit_are_refused(positions, message):
    layer = grouped()
    with pytest.raises(ValueError, match=message):
        layer(tensor(checks.inputs_of(cross=False)["query"]), positions=positions)


def test_order_is_lost_where_float32_has_one_number_for_two():
    """Beyond 2 ** 24 float32 has even numbers only: 2 ** 24 + 1 becomes 2 ** 24."""
    far = 2.0**24
    _check_order(np.array([[far + 2, far], [0.0, 1.0]]))
    _check_order(np.array([[far, far]]))  # equal before as well
    _check_order(np.array([[[far, 1.0], [far + 2, far]]]))  # of two axes, which are not compared
    for positions in (
        np.array([[0.0, 1.0, 2.0], [far + 1, 5.0, far]]),
        np.array([[[1.0, far + 1], [2.0, 5.0], [3.0, far]]]),
    ):
        with pytest.raises(ValueError) as error:
            _check_order(positions)
        assert str(error.value) == (
            "`positions` must be numbers that float32 can tell apart: subtract the earliest "
            "position of each sequence first, as only differences matter to most layers. "
            "Received: 16777216.0 and 16777217.0"
        )


def test_integers_pass_unchanged_and_masks_keep_their_dtype():
    layer, whole, query = grouped(), np.arange(3)[None], np.zeros((1, 3, D))
    assert hide_real(whole, layer, query) is whole
    assert hide_real(None, layer, query) is None
    assert isinstance(hide_real(whole / 2, layer, query), RealPositions)
    assert AttentionMask(query_positions=tensor(whole)).position_dtype == "int32"
    mask = AttentionMask(causal=True, query_positions=tensor(whole / 2))
    assert mask.position_dtype == "float32"
    found = to_numpy(mask.block_mask(Span(0, 3), Span(0, 3)))[0, 0]
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 0], [1, 1, 0]])


def test_positions_have_no_gradient():
    if BACKEND != "torch":
        return
    at = tensor(REAL).requires_grad_(True)
    layer = make("half", {"use_causal_mask"})
    output = layer(tensor(X), positions=at)
    output.sum().backward()
    assert at.grad is None


# Models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["half", "relative"])
def test_models_of_real_positions_train_and_come_back(position, tmp_path):
    inputs, positions = keras.Input((None, D)), keras.Input((None,))
    layer = grouped(use_causal_mask=True, position=POSITIONS[position](), sliding_window=5)
    model = keras.Model([inputs, positions], layer(inputs, positions=positions))
    rng = np.random.default_rng(4)
    for variable in model.trainable_variables:
        variable.assign(checks.drawn(rng, variable))
    x = checks.inputs_of(cross=False)["query"].astype("float32")
    at = (rng.integers(0, 90, (checks.B, checks.T)) / 8.0).astype("float32")
    np.testing.assert_allclose(
        predicted(model, x, at), to_numpy(layer(tensor(x), positions=at)), atol=1e-6
    )
    model.compile("sgd", "mse", jit_compile=JIT)
    before = model.evaluate([x, at], x, verbose=0)
    model.fit([x, at], x, verbose=0, epochs=3)
    assert model.evaluate([x, at], x, verbose=0) < before
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, x, at), predicted(model, x, at), atol=1e-6)


def test_a_model_holds_real_positions(tmp_path):
    inputs = keras.Input((checks.T, D))
    layer = grouped(use_causal_mask=True, position=ka.AlibiPosition())
    at = (np.array([[3, 1, 2, 7, 6, 5, 4]]) / 8.0)[:, : checks.T]
    model = keras.Model(inputs, layer(inputs, positions=at))
    x = checks.inputs_of(cross=False)["query"].astype("float32")
    expected = to_numpy(layer(tensor(x), positions=at))
    np.testing.assert_allclose(predicted(model, x), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, x), expected, atol=1e-6)
    with pytest.raises(ValueError, match="float32 can tell apart"):
        layer(inputs, positions=20000 + at / 1000)


def test_compiled_calls_take_real_positions():
    layer = make("alibi", {"use_causal_mask", "sliding_window"})
    expected = to_numpy(layer(tensor(X), positions=tensor(REAL)))
    run = compiled(lambda x, at: layer(x, positions=at))
    np.testing.assert_allclose(to_numpy(run(tensor(X), tensor(REAL))), expected, atol=1e-6)


def test_attended_axes_take_real_positions():
    layer = ka.MultiHeadAttention(3, 4, attention_axes=2, position=ka.AlibiPosition())
    images = np.random.default_rng(1).normal(size=(2, 3, 5, D)).astype("float32")
    at = np.random.default_rng(2).integers(0, 40, (2, 5)) / 8.0
    layer.build(images.shape)
    found = to_numpy(layer(tensor(images), positions=at)).reshape(6, 5, D)
    flat = ka.MultiHeadAttention(3, 4, position=ka.AlibiPosition())
    flat.build((6, 5, D))
    flat.set_weights(layer.get_weights())
    rows = np.repeat(at, 3, axis=0)
    expected = to_numpy(flat(tensor(images.reshape(6, 5, D)), positions=rows))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_masked_out_nan_with_real_positions():
    """Keys after all queries that are NaN; the first poisoned key is found by its position."""
    layer = make("half", {"use_causal_mask"})
    at = np.sort(REAL, axis=1)
    x = np.array(X)
    expected = to_numpy(layer(tensor(x), positions=at))
    x[0, at[0] > at[0, 6]] = np.nan
    found = to_numpy(layer(tensor(x), positions=at))
    seen = at[0] <= at[0, 6]
    np.testing.assert_allclose(found[0, seen], expected[0, seen], atol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    assert np.isnan(found[0, ~seen]).all()


@pytest.mark.parametrize("flash", [False, True])
def test_rules_of_masks_compare_real_positions(flash):
    """Chunks of two units and a prefix up to position 1, against the explicit mask."""
    layer = grouped(mask=ka.ChunkMask(2) | ka.PrefixMask(1), flash_attention=flash)
    plain = grouped(flash_attention=flash)
    for each in (layer, plain):
        each.build((checks.B, checks.T, D))
    plain.set_weights(layer.get_weights())
    at = np.random.default_rng(6).integers(0, 60, (checks.B, checks.T)) / 8.0
    queries, keys = at[:, :, None], at[:, None]
    seen = (np.floor(queries / 2) == np.floor(keys / 2)) | (keys < 1)
    x = tensor(checks.inputs_of(cross=False)["query"])
    expected = to_numpy(call(plain, [x], attention_mask=seen))
    np.testing.assert_allclose(to_numpy(layer(x, positions=at)), expected, atol=1e-6)


def test_rows_of_distant_positions_are_told_apart_by_themselves():
    """1e8 and 1e8 + 1 are one number of float32, but of different sequences."""
    layer = ka.GroupQueryAttention(4, 3, 1, position=ka.RotaryPosition())
    x = tensor(np.random.default_rng(2).normal(size=(2, 2, 5)))
    apart = np.array([[0.0, 1e8], [2.0, 1e8 + 1.0]])
    assert np.isfinite(to_numpy(layer(x, positions=apart))).all()
    if BACKEND == "jax":  # which has no float64 here
        with pytest.raises(ValueError, match="float32 can tell apart"):
            layer(x, positions=np.array([[0.0, 1.0], [1e8, 1e8 + 1.0]]))
