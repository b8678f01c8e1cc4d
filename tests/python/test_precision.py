"""Low precision: errors against float64 no larger than the formula's own, nothing infinite.

The rule: rounded to a precision, the inputs have an exact answer in float64; our error against it
is at most twice the error of the plain formula computed in that precision.
"""

import itertools

import numpy as np
import pytest
from keras import ops

from backends import sampled, tensor, to_numpy, value_and_gradients
from kerasattention import scaled_dot_product_attention
from problems import PROBLEMS, SMALL_BLOCK, block_size, problem

PRECISIONS = ["float16", "bfloat16", "float32"]
IMPLEMENTATIONS = ["plain", "blocked"]

# More keys than in other tests: sums over them are where low precision loses digits.
SIZES = {"B": 2, "K": 3, "G": 2, "H": 31, "Hv": 29, "T": 43, "S": 61}
PRECISE = {
    "nothing hidden": problem(**SIZES),
    "causal": problem(**SIZES, mask_fields={"causal": True, "window": 23}),
    # More heads: the error of six numbers is a matter of luck.
    "sink, cap": problem(
        **SIZES | {"G": 43}, sink=np.random.default_rng(1).normal(size=129), cap=3.0, scale=0.5
    ),
}


def rounded(given, dtype):
    """The same problem with its inputs as the precision can hold them."""
    changes = {name: to_numpy(tensor(x, dtype)) for name, x in given.trainable().items()}
    return problem_like(given, **changes)


def problem_like(given, **changes):
    fields = {name: getattr(given, name) for name in given.__dataclass_fields__}
    return type(given)(**{**fields, **changes})


def formula(given, dtype):
    """Softmax(scale q k' + mask) v as one would write it, all in one precision."""

    def attend(query, key, value, sink=None):
        groups = query.shape[2] // key.shape[2]
        key, value = (ops.repeat(x, groups, axis=2) for x in (key, value))
        scale = given.query.shape[-1] ** -0.5 if given.scale is None else given.scale
        query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
        logits = ops.matmul(query * ops.cast(scale, dtype), ops.transpose(key, (0, 1, 3, 2)))
        if given.cap is not None:
            logits = ops.tanh(logits / given.cap) * given.cap
        if not given.seen.all():
            logits = ops.where(given.seen, logits, ops.cast(-np.inf, dtype))
        row_max = ops.max(logits, axis=-1, keepdims=True)
        weights = ops.exp(logits - row_max)
        total = ops.sum(weights, axis=-1, keepdims=True)
        if sink is not None:
            total = total + ops.exp(ops.reshape(sink, (1, -1, 1, 1)) - row_max)
        return (ops.transpose(ops.matmul(weights / total, value), (0, 2, 1, 3)),)

    return attend


def root_mean_square(x):
    return np.sqrt(np.mean(np.square(np.float64(x))))


CASES = [(name, dtype) for name in PRECISE for dtype in PRECISIONS]
ON_JAX = [("causal", "float16"), ("sink, cap", "bfloat16"), ("sink, cap", "float32")]


@pytest.mark.parametrize(("name", "dtype"), sampled(CASES, ON_JAX))
def test_errors_are_at_most_twice_those_of_the_formula(name, dtype):
    given = rounded(PRECISE[name], dtype)
    inputs = {name: tensor(x, dtype) for name, x in given.trainable().items()}
    upstream = tensor(given.upstream)
    expected = {"output": given.expected[0], **given.expected_gradients}

    def errors(function):
        (output, *_), gradients = value_and_gradients(function, inputs, upstream)
        found = {"output": output, **gradients}
        return {what: root_mean_square(found[what] - expected[what]) for what in found}

    allowed = errors(formula(given, dtype))
    for implementation in IMPLEMENTATIONS:
        with block_size(19):
            ours = errors(
                lambda implementation=implementation, **x: (
                    given.attend(**x, implementation=implementation),
                )
            )
        for what, size in ours.items():
            assert size <= 2 * allowed[what], (implementation, what)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float16_inputs_of_size_1000_do_not_overflow(implementation):
    """Logits of a million are beyond float16; the weights are then those of a maximum."""
    rng = np.random.default_rng(31)
    given = problem(T=13, S=17, mask_fields={"causal": True})
    given = problem_like(
        given,
        query=1000.0 * rng.choice([-1, 1], given.query.shape),
        key=1000.0 * rng.choice([-1, 1], given.key.shape) * rng.uniform(0.9, 1, given.key.shape),
        value=1000.0 * given.value,
    )
    given = rounded(given, "float16")
    inputs = {name: tensor(x, "float16") for name, x in given.trainable().items()}
    with block_size(SMALL_BLOCK):
        (output,), gradients = value_and_gradients(
            lambda **x: (given.attend(**x, implementation=implementation),),
            inputs,
            tensor(given.upstream),
        )
    np.testing.assert_allclose(output, given.expected[0], rtol=1e-3)
    for gradient in gradients.values():
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    sampled(
        itertools.product(IMPLEMENTATIONS, PRECISIONS),
        [("plain", "float16"), ("blocked", "bfloat16")],
    ),
)
def test_nothing_is_nan_where_nothing_is_visible(implementation, dtype):
    """Rows without keys give zero and pass no gradient on, with every other option at once."""
    given = PROBLEMS["all at once"]
    seen = given.seen
    assert (~seen.any(axis=-1)).sum() > 50
    inputs = {name: tensor(x, dtype) for name, x in given.trainable().items()}
    with block_size(SMALL_BLOCK):
        (output, scores), gradients = value_and_gradients(
            lambda **x: given.attend(**x, implementation=implementation, return_scores=True),
            inputs,
            tensor(given.upstream),
        )
    empty = ~seen.any(axis=-1)  # (B, N, T)
    assert (output.transpose(0, 2, 1, 3)[empty] == 0.0).all()
    assert (scores[empty] == 0.0).all()
    assert np.isfinite(output).all()
    assert np.isfinite(scores).all()
    for gradient in gradients.values():
        assert np.isfinite(gradient).all()
    assert (gradients["query"].transpose(0, 2, 1, 3)[empty] == 0.0).all()
    unseen = ~seen.any(axis=(1, 2))  # (B, S)
    assert unseen.any()
    assert (gradients["key"][unseen] == 0.0).all()
    assert (gradients["value"][unseen] == 0.0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_unbounded_inputs_stay_finite(implementation):
    """The largest finite numbers of float16 in every input."""
    largest = float(np.finfo("float16").max)
    given = problem(mask_fields={"causal": True})
    inputs = {
        name: ops.ones(x.shape, dtype="float16") * largest for name, x in given.trainable().items()
    }
    with block_size(SMALL_BLOCK):
        (output,), _ = value_and_gradients(
            lambda **x: (given.attend(**x, implementation=implementation),),
            inputs,
            tensor(given.upstream),
        )
    # A mean of equal values; one rounding step of float16 may take it past the largest.
    assert np.isfinite(output).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_same_call_gives_the_same_bits(implementation):
    given = PROBLEMS["all at once"]
    inputs = {name: tensor(x) for name, x in given.trainable().items()}
    found = []
    for _ in range(2):
        with block_size(SMALL_BLOCK):
            output, gradients = value_and_gradients(
                lambda **x: (given.attend(**x, implementation=implementation),),
                inputs,
                tensor(given.upstream),
            )
        found.append([*output, *gradients.values()])
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def test_gradient_of_a_sink_summed_over_many_rows():
    """Derivatives by the row's maximum cancel: their rounding errors took two digits off it."""
    rng = np.random.default_rng(0)
    query, key = (0.3 * rng.normal(size=(1, 499, 1, 5)) for _ in range(2))
    value, upstream = (rng.normal(size=(1, 499, 1, 7)) for _ in range(2))
    given = {"query": query, "key": key, "value": value, "sink": np.ones(1)}

    def attend(**inputs):
        return (scaled_dot_product_attention(**inputs, implementation="plain"),)

    inputs = {name: tensor(x) for name, x in given.items()}
    _, gradients = value_and_gradients(attend, inputs, tensor(upstream))
    weights = np.exp(query[0, :, 0] @ key[0, :, 0].T / np.sqrt(5))
    total = weights.sum(1) + np.exp(1.0)
    weights = weights / total[:, None]
    of_weights = upstream[0, :, 0] @ value[0, :, 0].T
    expected = -((weights * of_weights).sum(1) * np.exp(1.0) / total).sum()
    np.testing.assert_allclose(gradients["sink"], expected, rtol=1e-5)
