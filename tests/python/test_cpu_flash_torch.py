"""The kernels of torch against the float64 reference, and what keeps a problem from them."""

import dataclasses

import numpy as np
import pytest

import kerasattention as ka
from backends import tensor, to_numpy, value_and_gradients
from kerasattention import scaled_dot_product_attention
from kerasattention.attend import tiling
from kerasattention.attend.api import attend, make_inputs
from kerasattention.attend.kernels.torch import sdpa
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import KeySpans
from problems import PROBLEMS, kernel, problem

SINKS = ka.WindowMask(9) | ka.PrefixMask(4)
CLOSE = {"rtol": 1e-5, "atol": 5e-6}

# What no kernel does, by the argument that the error must name.
PREVENTED = {
    "cap": "logit_soft_cap",
    "cap, bias, causal": "logit_soft_cap",
    "dropout": "dropout",
    "dropout, window, causal": "dropout",
    "all at once": "logit_soft_cap",
}
HONOURED = [name for name in PROBLEMS if name not in PREVENTED]


def attend_and_differentiate(given, trained, **options):
    inputs = {name: tensor(x) for name, x in given.trainable().items()}
    fixed = {name: x for name, x in inputs.items() if name not in trained}

    def attend(**values):
        return (given.attend(**values, **fixed, **{"implementation": "fused"} | options),)

    moving = {name: x for name, x in inputs.items() if name in trained}
    (output,), gradients = value_and_gradients(attend, moving, tensor(given.upstream))
    return output, gradients


def check(given, **options):
    trained = [name for name in given.trainable() if name != "bias"]
    output, gradients = attend_and_differentiate(given, trained, **options)
    np.testing.assert_allclose(output, given.expected[0], **CLOSE)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, given.expected_gradients[name], **CLOSE, err_msg=f"d {name}"
        )


# Blocks of 3 queries: several of one shape in a call, and others by themselves.
blocks = pytest.mark.parametrize("size", [None, 3])


@pytest.mark.parametrize("name", HONOURED)
@blocks
def test_kernel_of_the_cpu(name, size):
    check(PROBLEMS[name], block_size=size)


@pytest.mark.parametrize("name", [name for name in HONOURED if "sink" not in name])
@blocks
def test_public_function_of_other_devices(name, size):
    check(PROBLEMS[name], block_size=size, implementation=kernel(sdpa.sdpa_attention))


def visible(**options):
    return problem(T=61, S=61, mask_fields={"causal": True, **options})


LONGER = {
    "window": visible(window=8),
    "window of all": visible(window=61),
    "two-sided window": problem(T=61, S=61, mask_fields={"window": 8}),
    "window, padding": visible(window=8, key_mask=np.arange(61) < np.array([[61], [40]])),
    "window, cross": problem(T=61, S=37, mask_fields={"causal": True, "window": 8}),
    "window, from an offset": problem(T=53, S=61, mask_fields={"window": 8, "offset": 8}),
    "one query": problem(T=1, mask_fields={"key_mask": np.arange(17) < np.array([[17], [6]])}),
    "one query, mask of heads": problem(
        T=1, mask_fields={"mask": np.random.default_rng(8).random((2, 15, 1, 17)) < 0.5}
    ),
    "larger heads than values": problem(H=13, Hv=11, mask_fields={"causal": True}),
    "no queries": problem(T=0),
    "no keys": problem(S=0),
}


@pytest.mark.parametrize("name", LONGER)
@blocks
def test_strided_blocks_and_edges(name, size):
    check(LONGER[name], block_size=size)


def test_strided_blocks_cover_most_of_a_window():
    """Else the test above would prove nothing about them."""
    given = LONGER["window"]
    planned = tiling.plan_kernel_calls(engine_problem(given), broadcasts=True, block_size=3)
    assert max(strided.count for strided in planned) >= 15
    covered = [
        row
        for strided in planned
        for row in range(strided.rows.start, strided.rows.start + strided.count * strided.rows.size)
    ]
    assert covered == list(range(61))


@pytest.mark.parametrize("masks", [SINKS, SINKS | (ka.WindowMask(60) & ~ka.WindowMask(55))])
def test_keys_beside_a_window_are_merged(masks, monkeypatch):
    """Also where padding leaves a query the window only, the keys beside it only, or none."""
    monkeypatch.setattr(tiling, "MERGED_ROWS", 17)
    rng = np.random.default_rng(7)
    drawn = [rng.normal(size=(3, 131, heads, 5)) for heads in (6, 2, 2)]
    named = dict(zip(("query", "key", "value"), drawn, strict=True))
    real = np.arange(131) >= np.array([[0], [3], [60]])
    real[0, 5:30] = False
    real[1] = np.arange(131) < 4
    fields = {"causal": True, "further_rules": (masks,)}
    frame = AttentionMask(**fields, key_mask=tensor(real))
    inputs = make_inputs(*map(tensor, drawn), frame)
    planned = tiling.plan_kernel_calls(inputs, True, 4, merges=True)
    is_one = masks is SINKS
    assert any(x.merged for x in planned) == is_one
    assert any(x.count > 1 and isinstance(x.columns, KeySpans) for x in planned) != is_one
    found = []
    for given in ({"implementation": "plain"}, {"implementation": "fused", "block_size": 4}):

        def run(given=given, **values):
            return (attend(*values.values(), frame, **given),)

        found.append(value_and_gradients(run, named, tensor(drawn[0])))
    (expected,), wanted = found[0]
    (output,), gradients = found[1]
    np.testing.assert_allclose(output, expected, **CLOSE)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], **CLOSE, err_msg=f"d {name}")


def engine_problem(given):
    query, key, value = (tensor(x) for x in (given.query, given.key, given.value))
    return make_inputs(query, key, value, AttentionMask(**given.mask_fields))


@pytest.mark.parametrize("name", PREVENTED)
def test_errors_name_what_prevents_a_kernel(name):
    with pytest.raises(ValueError, match=rf"none honours {PREVENTED[name]}"):
        check(PROBLEMS[name])


def test_a_trained_bias_prevents_a_kernel():
    given = PROBLEMS["bias (T, S)"]
    with pytest.raises(ValueError, match="none honours attention_bias"):
        attend_and_differentiate(given, list(given.trainable()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["nothing hidden", "window, causal", "padded keys, causal"])
@blocks
def test_low_precision_errs_no_more_than_twice_the_plain_formula(name, dtype, size):
    """Output and gradients against float64, of inputs that the dtype holds exactly."""
    import torch

    given = dataclasses.replace(PROBLEMS[name])
    for field in ("query", "key", "value"):
        rounded = torch.tensor(getattr(given, field)).to(getattr(torch, dtype))
        setattr(given, field, rounded.double().numpy())
    inputs = {name: tensor(x, dtype) for name, x in given.trainable().items()}
    upstream = tensor(given.upstream, dtype)
    given.__dict__["upstream"] = upstream.double().numpy()
    expected = {"output": given.expected[0], **given.expected_gradients}

    def errors(attend):
        moving = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        output = attend(**moving)
        output.backward(upstream)
        found = {"output": output, **{name: x.grad for name, x in moving.items()}}
        return {
            name: np.abs(x.detach().double().numpy() - expected[name]).max()
            for name, x in found.items()
        }

    def plain_formula(query, key, value):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        logits = logits.masked_fill(~torch.tensor(given.seen), float("-inf"))
        weights = torch.softmax(logits, dim=-1).nan_to_num(0.0)
        return (weights @ value).transpose(1, 2)

    ours = errors(lambda **x: given.attend(**x, implementation="fused", block_size=size))
    plain = errors(plain_formula)
    for name, error in ours.items():
        assert error <= 2 * plain[name], name


def test_no_overflow_in_float16():
    """Logits of 300 * 300 * 7 / sqrt(7): beyond float16 before they are scaled down."""
    inputs = [tensor(np.full((1, 5, 2, 7), 300.0), "float16") for _ in range(3)]
    output = scaled_dot_product_attention(*inputs, causal=True, implementation="fused")
    np.testing.assert_array_equal(to_numpy(output), 300.0)


def test_upstream_gradients_of_any_strides():
    """A sum gives every element one and the same number in memory."""
    import torch

    inputs = [tensor(PROBLEMS["causal"].__dict__[x]) for x in ("query", "key", "value")]
    found = []
    for implementation in ("fused", "plain"):
        moving = [x.clone().requires_grad_() for x in inputs]
        scaled_dot_product_attention(
            *moving, causal=True, implementation=implementation
        ).sum().backward()
        found.append([to_numpy(x.grad) for x in moving])
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, **CLOSE)
    assert torch.is_grad_enabled()


def test_inputs_whose_last_axis_is_not_contiguous():
    """The kernels read heads as they lie in memory."""
    arrays = [PROBLEMS["causal"].__dict__[x] for x in ("query", "key", "value")]
    strided = [tensor(np.ascontiguousarray(x.swapaxes(1, 3))).transpose(1, 3) for x in arrays]
    assert all(x.stride(-1) != 1 for x in strided)
    expected = scaled_dot_product_attention(
        *map(tensor, arrays), causal=True, implementation="plain"
    )
    found = scaled_dot_product_attention(*strided, causal=True, implementation="fused")
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), **CLOSE)


@pytest.mark.parametrize("causal", [True, False])
def test_second_derivatives_of_the_public_function(causal):
    """With its own causal rule, a scale, and key heads for several query heads."""
    import torch

    from kerasattention.attend.kernels.torch.double_backward import with_second_derivative

    rng = np.random.default_rng(6)
    shapes = ((2, 6, 7, 5), (2, 3, 7, 5), (2, 3, 7, 5))
    arrays = [torch.as_tensor(rng.normal(size=shape)) for shape in shapes]
    directions = [torch.as_tensor(rng.normal(size=shape)) for shape in shapes]
    upstream = torch.as_tensor(rng.normal(size=shapes[0]))
    options = {"is_causal": causal, "scale": 0.7, "enable_gqa": True}

    def second(attend):
        moving = [x.clone().requires_grad_() for x in arrays]
        first = torch.autograd.grad(attend(*moving), moving, upstream, create_graph=True)
        total = sum((x * y).sum() for x, y in zip(first, directions, strict=True))
        return torch.autograd.grad(total, moving)

    def ours(query, key, value):
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
        return with_second_derivative(output)

    def plain(query, key, value):
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        logits = 0.7 * query @ key.transpose(2, 3)
        if causal:
            logits = logits.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf)
        return torch.softmax(logits, dim=-1) @ value

    for found, expected in zip(second(ours), second(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
