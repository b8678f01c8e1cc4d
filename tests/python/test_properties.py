"""What holds of any attention problem: drawn by hypothesis, small, all options at once."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import BACKEND, run, tensor, to_numpy
from kerasattention.attend import api
from kerasattention.attend.mask import AttentionMask
from problems import AttentionProblem, block_size

# JAX compiles every new shape. `make fuzz` draws as many as there is time for.
EXAMPLES = 5 if BACKEND == "jax" else 60
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def any_problem(draw):
    sizes = {name: draw(st.integers(1, most)) for name, most in [("B", 3), ("K", 3), ("G", 3)]}
    sizes |= {name: draw(st.sampled_from([1, 2, 5])) for name in ("H", "Hv")}
    sizes |= {name: draw(st.integers(1, 11)) for name in ("T", "S")}
    b, k, g, h, hv, t, s = sizes.values()
    n = k * g
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fields = {
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, 12)),
        "offset": draw(st.integers(0, 4)),
    }
    rules = {
        "query_positions": lambda: rng.integers(0, 12, (b, t)),
        "query_mask": lambda: rng.random((b, t)) < 0.7,
        "key_mask": lambda: rng.random((b, s)) < 0.7,
        "mask": lambda: rng.random(draw(st.sampled_from([(t, s), (b, t, s), (b, n, t, s)]))) < 0.7,
    }
    chosen = draw(st.sets(st.sampled_from(sorted(rules)), max_size=3))
    fields |= {name: rules[name]() for name in sorted(chosen)}
    if "query_positions" in chosen:
        fields["key_positions"] = rng.integers(0, 12, (b, s))
        fields.pop("offset")
    if draw(st.booleans()):
        fields["query_segments"] = rng.integers(0, 3, (b, t))
        fields["key_segments"] = rng.integers(0, 3, (b, s))
    return AttentionProblem(
        query=rng.normal(size=(b, t, n, h)),
        key=rng.normal(size=(b, s, k, h)),
        value=rng.normal(size=(b, s, k, hv)),
        mask_fields=fields,
        bias=rng.normal(size=(b, n, t, s)) if draw(st.booleans()) else None,
        sink=rng.normal(size=n) if draw(st.booleans()) else None,
        cap=draw(st.none() | st.floats(0.5, 3.0)),
        scale=draw(st.none() | st.floats(0.1, 2.0)),
        rate=draw(st.sampled_from([0.0, 0.0, 0.4])),
    )


def ours(given, **options):
    inputs = given.trainable()
    found = run(
        lambda *x: given.attend(**dict(zip(inputs, x, strict=True)), **options),
        *[tensor(x) for x in inputs.values()],
    )
    return [to_numpy(x) for x in found] if isinstance(found, (tuple, list)) else to_numpy(found)


@given(any_problem(), st.integers(1, 7))
@QUICK
def test_any_problem_in_any_blocks_is_that_of_the_reference(problem, size):
    with block_size(size):
        output = ours(problem, implementation="blocked")
    np.testing.assert_allclose(output, problem.expected[0], rtol=2e-5, atol=1e-5)


@given(any_problem())
@QUICK
def test_the_chosen_way_with_scores_is_that_of_the_reference(problem):
    output, scores = ours(problem, return_scores=True)
    np.testing.assert_allclose(output, problem.expected[0], rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(scores, problem.expected[1], rtol=2e-5, atol=1e-6)
    assert (scores >= 0).all()
    total = scores.sum(axis=-1)
    if problem.sink is None:
        # All of one query's attention, or none where it sees nothing.
        expected = problem.seen.any(axis=-1)
        np.testing.assert_allclose(total, expected, atol=1e-5)
    else:
        assert (total < 1).all()


@given(any_problem(), st.integers(-1000, 1000))
@QUICK
def test_only_differences_of_positions_count(problem, shift):
    fields = dict(problem.mask_fields)
    offset = fields.pop("offset", 0)
    fields.setdefault("query_positions", np.arange(problem.query.shape[1]) + offset)
    fields.setdefault("key_positions", np.arange(problem.key.shape[1]))
    moved = {name: fields[name] + shift for name in ("query_positions", "key_positions")}
    described = {
        name: tensor(x) if isinstance(x, np.ndarray) and name != "mask" else x
        for name, x in {**fields, **moved}.items()
        if name != "mask"
    }
    inputs = [tensor(x) for x in (problem.query, problem.key, problem.value)]
    with block_size(3):
        output = run(
            lambda *x: api.attend(*x, AttentionMask(**described), implementation="blocked"), *inputs
        )
    like = AttentionProblem(
        problem.query,
        problem.key,
        problem.value,
        mask_fields={name: x for name, x in problem.mask_fields.items() if name != "mask"},
    )
    np.testing.assert_allclose(to_numpy(output), like.expected[0], rtol=2e-5, atol=1e-5)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(1, 5))
@QUICK
def test_an_output_is_a_mean_of_visible_values(length, seed, size):
    """So it lies between the least and the greatest of them, however large the logits are."""
    rng = np.random.default_rng(seed)
    mask = rng.random((1, 1, length, 7)) < 0.5
    problem = AttentionProblem(
        query=30 * rng.normal(size=(1, length, 2, 3)),
        key=30 * rng.normal(size=(1, 7, 1, 3)),
        value=rng.normal(size=(1, 7, 1, 2)),
        mask_fields={"mask": mask},
    )
    with block_size(size):
        output = ours(problem, implementation="blocked")
    for t in range(length):
        visible = problem.value[0, mask[0, 0, t], 0] if mask[0, 0, t].any() else np.zeros((1, 2))
        assert (output[0, t] >= visible.min(axis=0) - 1e-5).all()
        assert (output[0, t] <= visible.max(axis=0) + 1e-5).all()
