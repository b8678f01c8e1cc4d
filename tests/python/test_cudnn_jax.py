"""Which problems JAX hands to cuDNN's kernel on a GPU, and the call of it."""

import dataclasses
import types

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import scaled_dot_product_attention
from kerasattention.attend.kernels.jax import cudnn
from kerasattention.attend.kernels.plain import plain_attention
from problems import PROBLEMS, kernel, problem

CUDNN = {
    "nothing hidden": problem(H=8, Hv=8),
    "causal": problem(H=8, Hv=8, mask_fields={"causal": True}),
    "window, causal": problem(H=8, Hv=8, S=13, mask_fields={"causal": True, "window": 4}),
    "window of one": problem(H=8, Hv=8, S=13, mask_fields={"causal": True, "window": 1}),
}

NOT_CUDNN = {
    "cap": "logit_soft_cap",
    "dropout": "dropout",
    "sink": "sink",
    "bias (T, S)": "attention_bias",
    "mask (T, S)": "attention_mask",
    "padded keys, causal": "a mask of padding",
    "segments": "segment_ids",
    "causal from an offset": "positions",
    "window": "sliding_window without",
    "window, causal": "sliding_window with T != S",
}


GPU = types.SimpleNamespace(
    platform="gpu",
    client=types.SimpleNamespace(platform_version="cuda 12090"),
    compute_capability="9.0",
    device_kind="a GPU",
)


def anywhere(inputs, block_size):
    """JAX's own formula under the call that a GPU answers with cuDNN's kernel."""
    assert cudnn.unsupported(inputs, GPU) is None
    return cudnn.cudnn_attention(inputs, implementation="xla")


@pytest.mark.parametrize("name", CUDNN)
def test_call_of_cudnn(name):
    given = CUDNN[name]
    inputs = {name: tensor(x, "bfloat16") for name, x in given.trainable().items()}
    output = to_numpy(given.attend(**inputs, implementation=kernel(anywhere)))
    np.testing.assert_allclose(output, given.expected[0], rtol=0.05, atol=0.05)


def reason(given, dtype):
    """What keeps the inputs from cuDNN on a GPU."""
    found = []

    def look(inputs, block_size):
        found.append(cudnn.unsupported(inputs, GPU))
        return plain_attention(inputs)

    inputs = {name: tensor(x, dtype) for name, x in given.trainable().items()}
    given.attend(**inputs, implementation=kernel(look))
    return found[0]


@pytest.mark.parametrize("name", NOT_CUDNN)
def test_reasons_name_what_prevents_cudnn(name):
    given = dataclasses.replace(PROBLEMS[name])
    given.query, given.key, given.value = (
        np.resize(x, (*x.shape[:3], 8)) for x in (given.query, given.key, given.value)
    )
    assert reason(given, "bfloat16").startswith(NOT_CUDNN[name])


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({"H": 8, "Hv": 8}, "float32", "a dtype other"),
        ({"H": 7, "Hv": 7}, "bfloat16", "head sizes"),
        ({"H": 8, "Hv": 16}, "bfloat16", "head sizes"),
    ],
)
def test_reasons_name_sizes_and_dtypes(options, dtype, message):
    assert reason(problem(**options), dtype).startswith(message)


@pytest.mark.parametrize(
    ("platform", "version", "capability", "expected"),
    [
        ("gpu", "PJRT C API\ncuda 13000", "9.0", True),
        ("gpu", "PJRT C API\ncuda 12090", "8.0", True),
        ("gpu", "PJRT C API\ncuda 12090", "7.5", False),
        ("gpu", "PJRT C API\nrocm 70000", "gfx942", False),
        ("cpu", "cpu", None, False),
    ],
)
def test_devices_with_the_kernel(platform, version, capability, expected):
    device = types.SimpleNamespace(
        platform=platform,
        client=types.SimpleNamespace(platform_version=version),
        compute_capability=capability,
    )
    assert cudnn._has_cudnn(device) is expected


def test_a_cpu_has_no_kernel():
    given = CUDNN["causal"]
    inputs = [tensor(x, "bfloat16") for x in (given.query, given.key, given.value)]
    with pytest.raises(ValueError, match=r"none honours the device \(cpu"):
        scaled_dot_product_attention(*inputs, causal=True, implementation="fused")
