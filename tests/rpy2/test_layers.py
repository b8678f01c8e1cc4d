"""The R wrapper and the Python class make the same layer: same config, same numbers."""

import keras
import numpy as np
import pytest

import kerasattention

# B = 2, T = 3, S = 7, D = 11
rng = np.random.default_rng(5)
X = rng.normal(size=(2, 3, 11)).astype("float32")
Y = rng.normal(size=(2, 7, 11)).astype("float32")

# Each: R code, and the same layer in Python
GROUPED = "layer_group_query_attention(head_dim = 5, num_query_heads = 6, num_key_value_heads = 3"
HEADS = "layer_multi_head_attention(num_heads = 5, key_dim = 13"
LAYERS = {
    "grouped": (GROUPED, kerasattention.GroupQueryAttention, (5, 6, 3), {}),
    "heads": (HEADS, kerasattention.MultiHeadAttention, (5, 13), {}),
    "options": (
        GROUPED
        + ", dropout = 0.25, use_bias = FALSE, flash_attention = FALSE, seed = 7,"
        + " kernel_initializer = 'he_normal', kernel_regularizer = 'l2',"
        + " kernel_constraint = 'non_neg', sliding_window = 2, use_gate = TRUE,"
        + " qk_norm = TRUE, logit_soft_cap = 30, attention_sink = TRUE,"
        + " use_causal_mask = TRUE, trainable = FALSE, dtype = 'float32'",
        kerasattention.GroupQueryAttention,
        (5, 6, 3, 0.25, False, False, "he_normal"),
        {
            "kernel_regularizer": "l2",
            "kernel_constraint": "non_neg",
            "seed": 7,
            "sliding_window": 2,
            "use_gate": True,
            "qk_norm": True,
            "logit_soft_cap": 30,
            "attention_sink": True,
            "use_causal_mask": True,
            "trainable": False,
            "dtype": "float32",
        },
    ),
    "latents": (
        "layer_latent_attention(num_heads = 5, head_dim = 7, kv_rank = 13, query_rank = 17,"
        + " rotary_dim = 4, value_dim = 3, sliding_window = 2, attention_sink = TRUE",
        kerasattention.LatentAttention,
        (5, 7, 13, 17, 4, 3),
        {"sliding_window": 2, "attention_sink": True},
    ),
    "axes": (
        HEADS + ", value_dim = 17, output_shape = c(4, 8), attention_axes = c(1, 2)",
        kerasattention.MultiHeadAttention,
        (5, 13, 17),
        {"output_shape": (4, 8), "attention_axes": (1, 2)},
    ),
}


@pytest.fixture(params=LAYERS)
def pair(request, from_r):
    """A layer made in R and one made in Python, of the same name."""
    code, cls, args, kwargs = LAYERS[request.param]
    made = from_r(f"{code}, name = 'same')")
    return made, cls(*args, **kwargs, name="same")


def test_the_wrapper_makes_the_python_class(pair):
    made, expected = pair
    assert type(made) is type(expected)


def test_configs_are_equal_down_to_the_types(pair):
    made, expected = (layer.get_config() for layer in pair)
    assert made == expected
    for name, value in expected.items():
        assert type(made[name]) is type(value), name


def test_the_layer_of_r_gives_the_numbers_of_python(from_r, pair):
    made, expected = pair
    x = X if expected.get_config().get("attention_axes") is None else X[:, :, None].repeat(7, 2)
    expected(x)
    made(x)
    made.set_weights(expected.get_weights())
    called_in_r = from_r("layer(x)", layer=made, x=x)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(called_in_r),
        keras.ops.convert_to_numpy(expected(x)),
        rtol=1e-6,
        atol=1e-6,
    )


def test_arrays_of_r_have_the_axes_of_python(from_r, ro):
    layer = kerasattention.GroupQueryAttention(5, 6, 3)
    mask = rng.random((2, 6, 3, 7)) < 0.5
    expected, scores = layer(X, Y, attention_mask=mask, return_attention_scores=True)
    result = from_r(
        "x <- py_to_r(x); mask <- py_to_r(mask); stopifnot(is.array(x), is.logical(mask));"
        "unname(layer(x, y, attention_mask = mask, return_attention_scores = TRUE))",
        layer=layer,
        x=X,
        y=Y,
        mask=mask,
    )
    for ours, theirs in zip(result, (expected, scores), strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs), atol=1e-6
        )


def test_a_model_of_pipes_is_the_model_of_python(from_r):
    def in_python(x):
        x = kerasattention.GroupQueryAttention(5, 6, 3, name="a")(x, use_causal_mask=True)
        return kerasattention.MultiHeadAttention(5, 13, name="b")(x)

    x = keras.Input((None, 11), name="x")
    made = from_r(
        "x |> layer_group_query_attention(5, 6, 3, use_causal_mask = TRUE, name = 'a') |>"
        " layer_multi_head_attention(5, 13, name = 'b')",
        x=x,
    )
    theirs = keras.Model(x, in_python(x))
    ours = keras.Model(x, made)
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(
        ours.predict(X, verbose=0), theirs.predict(X, verbose=0), rtol=1e-6, atol=1e-6
    )
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]


def test_a_sequential_model_gets_the_layer(from_r):
    model = keras.Sequential()
    result = from_r(
        "model |> layer_multi_head_attention(5, 13, use_causal_mask = TRUE)", model=model
    )
    assert result is model
    assert isinstance(model.layers[0], kerasattention.MultiHeadAttention)
    assert model.layers[0].get_config()["use_causal_mask"] is True


def test_an_r_function_initializes_in_python(from_r):
    layer = from_r(HEADS + ", kernel_initializer = \\(shape) array(seq_len(prod(shape)), shape))")
    layer(X)
    kernel = keras.ops.convert_to_numpy(layer._query_dense.kernel)
    # R counts the first axis fastest.
    expected = np.arange(1, 11 * 5 * 13 + 1).reshape(11, 5, 13, order="F")
    np.testing.assert_array_equal(kernel, expected)


def test_errors_of_both_sides_have_one_class(message_of):
    kind, message = message_of("layer_multi_head_attention(num_heads = 2.5, key_dim = 3)")
    assert kind == "kerasattention_error"
    assert message == "`num_heads` must be a whole number of at least 1, not `2.5`."
    kind, message = message_of(
        "layer_multi_head_attention(num_heads = 2, key_dim = 3, kernel_initializer = 'no')"
    )
    assert kind == "kerasattention_error"
    assert message.startswith(
        "`kernel_initializer` must be the name of one of Keras's initializers"
    )
    kind, message = message_of(
        "layer_multi_head_attention(num_heads = 2, key_dim = 3, dtype = 'no')"
    )
    assert kind == "kerasattention_error"
    assert "Cannot convert 'no' to a mixed precision DTypePolicy" in message
    assert "Traceback" not in message
