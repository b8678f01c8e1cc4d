"""Quantised kernels on several devices: the numbers of one device, and what the report says."""

import pytest

from fresh import run_fresh
from kerasattention import HeadParallel

CODE = """
import keras, numpy as np
import kerasattention as ka

def build(mode):
    keras.utils.set_random_seed(1)
    tokens = keras.Input((16,), dtype="int32")
    x = keras.layers.Embedding(50, 24)(tokens)
    layer = ka.GroupQueryAttention(6, 8, 4, name="attention")
    model = keras.Model(tokens, layer(x))
    for projection in layer.projections().values():
        projection.quantize(mode)
    return model

x = np.random.default_rng(0).integers(0, 50, (4, 16))
for mode in ("int8", "int4"):
    expected = build(mode).predict(x, verbose=0)
    with ka.with_distribution(ka.HeadParallel(4)):
        model = build(mode)
        print(np.abs(model.predict(x, verbose=0) - expected).max() < 1e-5)
        try:
            print(ka.check_sharding(model))
        except ValueError as error:
            print(error)
    report = ka.sharding_report(model)
    print([row.why for row in report.rows if row.path == "attention/query/kernel"])
    print(report.summary.split("Forward: ")[1])
"""


@pytest.mark.nightly
def test_int8_kernels_are_split_and_int4_kernels_say_why_not(tmp_path):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    lines, _ = run_fresh(CODE, tmp_path, KERAS_BACKEND="jax", XLA_FLAGS=flags)
    same, checked, why, forward, same_of_int4, refused, why_of_int4, forward_of_int4 = lines
    assert [same, checked, why] == ["True", "None", "['query heads']"]
    assert forward.startswith("2 all-reduces per attention block")  # one of the largest input
    assert same_of_int4 == "True"
    assert "packed as int4 they have no axis of heads" in refused
    assert why_of_int4 == "['replicated: int4, packed without an axis of heads']"
    assert forward_of_int4.startswith("1 all-reduce per attention block")


def test_the_report_says_why_kernels_are_whole():
    distribution = HeadParallel(1)
    for name, heads in (("query", 8), ("key", 2)):
        path, shape = f"attention/{name}/kernel", (24, heads, 4)
        distribution.note(path, shape)
        assert distribution.layout_of(path, shape) == ((None,) * 3, "replicated: `model` is 1")
    _, why = distribution.layout_of("attention/query/kernel", (24, 16))
    assert why == "replicated: int4, packed without an axis of heads"
