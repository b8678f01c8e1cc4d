"""Every kernel against the float64 reference, and the public function."""

import keras
import numpy as np
import pytest

from backends import BACKEND, compiled, run, tensor, to_numpy, value_and_gradients
from kerasattention import scaled_dot_product_attention
from kerasattention.attend import api
from kerasattention.attend.mask import AttentionMask
from problems import HV, PROBLEMS, SMALL_BLOCK, B, H, K, N, S, T, block_size, problem

# float32 against float64: outputs are of size 1, gradients sum over a few hundred terms.
CLOSE = {"rtol": 1e-5, "atol": 5e-6}


def check(given, **options):
    """Output and gradients of ours against the reference."""
    inputs = {name: tensor(x) for name, x in given.trainable().items()}

    def attend(**values):
        found = given.attend(**values, **options)
        return found if isinstance(found, tuple) else (found,)

    (output, *scores), gradients = value_and_gradients(
        attend, inputs, tensor(given.upstream), as_one=False
    )
    expected_output, weights = given.expected
    np.testing.assert_allclose(output, expected_output, **CLOSE)
    if scores:
        # The weights before dropout.
        np.testing.assert_allclose(scores[0], weights, **CLOSE)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, given.expected_gradients[name], **CLOSE, err_msg=f"d {name}"
        )


@pytest.mark.parametrize("name", PROBLEMS)
def test_plain_and_scores(name):
    check(PROBLEMS[name], implementation="plain", return_scores=True)


# On the other backends test_tiled_BACKEND.py runs all problems through the blocked kernel.
BLOCKED = PROBLEMS if BACKEND == "tensorflow" else ["causal", "padded keys, causal", "all at once"]


@pytest.mark.parametrize("name", BLOCKED)
def test_blocked(name):
    with block_size(SMALL_BLOCK):
        check(PROBLEMS[name], implementation="blocked")


@pytest.mark.parametrize("size", [1, 2, 64])
def test_block_sizes(size):
    given = problem(T=5, S=3, rate=0.2, sink=np.ones(N), mask_fields={"causal": True, "window": 2})
    with block_size(size):
        check(given, implementation="blocked")


# One problem of each kind of work is enough to see that compiling changes nothing.
COMPILED = ["window, causal", "padded queries and keys, causal", "all at once"]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("jit_compile", [False, True] if BACKEND == "tensorflow" else [False])
def test_compiled_functions_give_the_same(name, jit_compile):
    given = PROBLEMS[name]
    inputs = {name: tensor(x) for name, x in given.trainable().items()}
    with block_size(SMALL_BLOCK):
        attend = compiled(lambda **v: given.attend(**v, implementation="blocked"), jit_compile)
        np.testing.assert_allclose(to_numpy(attend(**inputs)), given.expected[0], **CLOSE)


HAND_WORKED = {
    "plain": ({}, 10 / 6 + 40 / 6 + 180 / 6),
    "sink": ({"sink": [np.log(4.0)]}, 1 + 4 + 18),
    "mask": ({"attention_mask": [[1, 0, 1]]}, 10 / 4 + 180 / 4),
    "mask of False": ({"attention_mask": [[False, False, False]]}, 0.0),
    "bias": ({"attention_bias": [[np.log(3.0), 0.0, 0.0]]}, 30 / 8 + 40 / 8 + 180 / 8),
    "causal": ({"causal": True}, 10.0),
    "window": ({"sliding_window": 2}, 10 / 3 + 40 / 3),
    "segments": (
        {"segment_ids": (np.array([[2]]), np.array([[1, 2, 2]]))},
        20 * 2 / 5 + 60 * 3 / 5,
    ),
    "cap": (
        {"logit_soft_cap": 0.5, "scale": 1e4},
        # log 1 stays 0; the others reach the cap.
        (10 + np.exp(0.5) * 80) / (1 + 2 * np.exp(0.5)),
    ),
}


@pytest.mark.parametrize("name", HAND_WORKED)
@pytest.mark.parametrize("implementation", [None, "plain", "blocked"])
def test_hand_worked_values(name, implementation):
    """One query over keys whose logits are log 1, log 2 and log 3 and values 10, 20 and 60."""
    options, expected = HAND_WORKED[name]
    key = tensor(np.log([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1))
    value = tensor(np.reshape([10.0, 20.0, 60.0], (1, 3, 1, 1)))
    output = run(
        lambda *x: scaled_dot_product_attention(*x, implementation=implementation, **options),
        tensor(np.ones((1, 1, 1, 1))),
        key,
        value,
    )
    assert to_numpy(output).item() == pytest.approx(expected, rel=1e-5)


PUBLIC = {
    "causal": {"causal": True},
    "window": {"causal": True, "sliding_window": 4},
    "mask (T, S)": {"attention_mask": PROBLEMS["mask (T, S)"].mask_fields["mask"]},
    "mask (B, T, S)": {"attention_mask": PROBLEMS["mask (B, T, S)"].mask_fields["mask"]},
    "mask (B, N, T, S)": {"attention_mask": PROBLEMS["mask (B, N, T, S)"].mask_fields["mask"]},
    "bias (T, S)": {"attention_bias": PROBLEMS["bias (T, S)"].bias},
    "cap": {"logit_soft_cap": 1.3, "scale": 1.0},
    "sink": {"sink": PROBLEMS["sink"].sink},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function(name):
    """The public names say the same as the table's problems; lists and numbers are masks too."""
    given = PROBLEMS["window, causal" if name == "window" else name]
    options = PUBLIC[name]
    inputs = [tensor(x) for x in (given.query, given.key, given.value)]
    output, scores = run(
        lambda *x: scaled_dot_product_attention(*x, **options, return_scores=True), *inputs
    )
    np.testing.assert_allclose(to_numpy(output), given.expected[0], **CLOSE)
    np.testing.assert_allclose(to_numpy(scores), given.expected[1], **CLOSE)


def test_masks_may_be_numbers():
    given = PROBLEMS["mask (B, T, S)"]
    inputs = [tensor(x) for x in (given.query, given.key, given.value)]
    for dtype in ("int32", "float32"):
        mask = given.mask_fields["mask"].astype(dtype)
        output = run(
            lambda *x, mask=mask: scaled_dot_product_attention(*x, attention_mask=mask), *inputs
        )
        np.testing.assert_allclose(to_numpy(output), given.expected[0], **CLOSE)


def test_one_array_of_segments_serves_queries_and_keys():
    segments = np.array([[1] * 4 + [2] * 6 + [0] * 3, [3] * 1 + [1] * 12])
    given = problem(S=T, mask_fields={"query_segments": segments, "key_segments": segments})
    inputs = [tensor(x) for x in (given.query, given.key, given.value)]
    output = run(lambda *x: scaled_dot_product_attention(*x, segment_ids=segments), *inputs)
    np.testing.assert_allclose(to_numpy(output), given.expected[0], **CLOSE)


def shapes(query=(B, T, N, H), key=(B, S, K, H), value=(B, S, K, HV)):
    return [np.zeros(shape, "float32") for shape in (query, key, value)]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (shapes(query=(B, T, N * H)), {}, r"`query` must have 4 axes.*\(2, 13, 105\)"),
        (shapes(key=(B, S, 7, H), value=(B, S, 7, HV)), {}, "multiple of the heads of `key`"),
        (shapes(key=(B, S, K, 5)), {}, "one head size"),
        (shapes(value=(B, T, K, HV)), {}, "agree in length and heads"),
        (shapes(value=(B, S, 1, HV)), {}, "agree in length and heads"),
        (shapes(), {"attention_mask": np.ones((S,), bool)}, r"`attention_mask` must .*\(17,\)"),
        (shapes(), {"attention_bias": np.ones((1, B, N, T, S))}, "`attention_bias` must have"),
        (shapes(), {"implementation": "quantum"}, "implementation.*'quantum'"),
    ],
)
def test_errors_name_what_does_not_fit(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        scaled_dot_product_attention(*inputs, **options)


def test_the_result_has_the_dtype_of_the_query():
    given = PROBLEMS["causal"]
    for dtype in ("float16", "bfloat16", "float32"):
        inputs = [tensor(x, dtype) for x in (given.query, given.key, given.value)]
        output, scores = run(
            lambda *x: scaled_dot_product_attention(*x, causal=True, return_scores=True), *inputs
        )
        assert keras.backend.standardize_dtype(output.dtype) == dtype
        assert keras.backend.standardize_dtype(scores.dtype) == dtype


def test_inputs_are_left_as_they_were():
    given = PROBLEMS["all at once"]
    inputs = {name: tensor(x) for name, x in given.trainable().items()}
    before = {name: to_numpy(x).copy() for name, x in inputs.items()}
    run(lambda *x: given.attend(**dict(zip(inputs, x, strict=True))), *inputs.values())
    for name, x in inputs.items():
        np.testing.assert_array_equal(to_numpy(x), before[name])


def test_scores_and_a_path_that_never_holds_them_are_refused():
    inputs = arrays_of(PROBLEMS["causal"])
    with pytest.raises(ValueError) as error:
        api.attend(*inputs, AttentionMask(), return_scores=True, never_hold_scores=True)
    assert str(error.value) == (
        "`flash_attention=True` demands a path that never holds (T, S) scores, "
        "and `return_attention_scores=True` asks for them. Use "
        "`flash_attention=None`, or leave out `return_attention_scores`."
    )


def arrays_of(given):
    return [tensor(x) for x in (given.query, given.key, given.value)]
