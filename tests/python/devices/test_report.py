"""What is said of a model's weights, built or planned, against JAX's own shards."""

import resource
import time

import jax
import keras
import numpy as np
import pytest
from models import WIDTH, decoder

import kerasattention as ka
from kerasattention import HeadParallel, sharding_report, with_distribution
from kerasattention.distribution.collectives import count_collectives, describe

KD = keras.distribution
RULES = {"head/kernel": (None, "model"), "tok/embeddings": ("model", None)}


def plain_decoder(query=8, key_value=2):
    """As `decoder()`, without `compile()`."""
    tokens = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(40, WIDTH, name="tok")(tokens)
    x = ka.GroupQueryAttention(3, query, key_value, name="att", attention_sink=True)(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    return keras.Model(tokens, keras.layers.Dense(40, use_bias=False, name="head")(x))


def test_a_plan_says_what_a_built_model_has():
    planned = sharding_report(plain_decoder, HeadParallel(4, rules=RULES))
    with with_distribution(HeadParallel(4, rules=RULES)):
        model = plain_decoder()
    built = sharding_report(model)
    assert built == planned
    for row, variable in zip(built.rows, model.weights, strict=True):
        shard = variable.value.addressable_shards[0].data
        assert (row.path, row.shard_shape) == (variable.path, shard.shape)
        assert row.bytes_per_device == shard.nbytes
    why = {row.path: row.why for row in built.rows}
    assert why["att/sink"] == "query heads"
    assert why["att/key/kernel"] == "key/value heads, each on 2 devices"
    assert why["head/kernel"] == "rule 'head/kernel'"
    assert why["norm/gamma"] == "replicated: no rule"
    weights = sum(np.prod(v.shape) for v in model.weights)
    assert built.weights == weights
    assert built.bytes_total == 4 * weights
    assert "Forward: 1 all-reduce per attention block, compiled for 5 tokens." in built.summary
    assert built.summary.endswith("Replicated: 3 weights (0.3 KiB).")
    assert str(built).startswith("weight")


def test_the_words_of_other_distributions():
    report = sharding_report(plain_decoder, KD.DataParallel())
    assert {row.why for row in report.rows} == {
        "replicated: only batches are split",
        "replicated: no rule",
    }
    assert "Forward: no collective operation per attention block" in report.summary
    assert report.summary.endswith("All weights are replicated.")
    assert report.bytes_per_device == report.bytes_total
    mesh = KD.DeviceMesh((2, 4), ["batch", "model"], KD.list_devices())
    layouts = ka.attention_layout_map(mesh, 1)
    layouts["head/kernel"] = (None, "model")
    with with_distribution(KD.ModelParallel(layout_map=layouts)):
        model = plain_decoder()
    why = {row.path: row.why for row in sharding_report(model).rows}
    assert why["att/key/kernel"] == "replicated: 2 key/value heads do not divide by 4"
    assert why["att/query/kernel"] == "query heads"
    assert why["head/kernel"] == "a rule of the distribution"


def test_a_plan_for_split_sequences_counts_what_travels():
    def long(length=None):
        tokens = keras.Input((length, WIDTH))
        layer = ka.GroupQueryAttention(3, 8, 2, name="att", use_causal_mask=True)
        return keras.Model(tokens, layer(tokens))

    report = sharding_report(long, HeadParallel(2, seq=4))
    assert (
        "Forward: 1 all-reduce and 2 collective-permutes in each step of a loop per attention "
        "block, compiled for 1024 tokens." in report.summary
    )
    assert "not counted (ValueError: Sequences must divide over the 4 devices" in str(
        sharding_report(lambda: long(30), HeadParallel(2, seq=4))
    )


@pytest.mark.parametrize(("key_value", "count"), [(2, 3), (8, 2)])
def test_norms_over_the_width_add_all_reduces(key_value, count):
    """Sums of squares over all heads: of queries and keys in one if the same devices share both."""

    def normed():
        tokens = keras.Input((8, WIDTH))
        norm = {"type": "rms", "over": "width"}
        layer = ka.GroupQueryAttention(3, 8, key_value, qk_norm=norm, name="att")
        return keras.Model(tokens, layer(tokens))

    report = sharding_report(normed, HeadParallel(4))
    assert f"Forward: {count} all-reduces per attention block" in report.summary


def test_what_cannot_be_reported():
    with pytest.raises(ValueError, match=r"leave compile\(\) out.*only shapes are wanted"):
        sharding_report(decoder, HeadParallel(4))
    with pytest.raises(ValueError, match=r"must return a built model. Received: int"):
        sharding_report(lambda: 3, HeadParallel(4))
    with pytest.raises(ValueError, match="Received: int"):
        sharding_report(3, HeadParallel(4))
    with pytest.raises(ValueError, match="`distribution` must be a distribution"):
        sharding_report(plain_decoder)
    with pytest.raises(ValueError, match="cannot be split over 8 devices"):
        sharding_report(lambda: plain_decoder(12, 3), HeadParallel(8))
    model = plain_decoder()
    with pytest.raises(ValueError, match="was not built over several devices"):
        sharding_report(model)
    with pytest.raises(ValueError, match="Leave it out"):
        sharding_report(model, HeadParallel(4))


def test_a_plan_leaves_nothing_behind():
    arrays = len(jax.live_arrays())
    sharding_report(plain_decoder, HeadParallel(4))
    assert KD.distribution() is None
    assert len(jax.live_arrays()) <= arrays
    # Keras gives waiting variables values at the end of the next scope.
    with keras.StatelessScope():
        pass
    assert len(jax.live_arrays()) <= arrays


def llama_8b():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(128256, 4096, name="tok")(tokens)
    options = {"use_bias": False, "use_causal_mask": True}
    for n in range(32):
        h = keras.layers.RMSNormalization(name=f"b{n}_ln1")(x)
        rotary = ka.RotaryPosition(theta=500000.0)
        attention = ka.GroupQueryAttention(128, 32, 8, position=rotary, name=f"b{n}_att", **options)
        x = x + attention(h)
        h = keras.layers.RMSNormalization(name=f"b{n}_ln2")(x)
        dense = {"use_bias": False}
        gate = keras.layers.Dense(14336, activation="silu", name=f"b{n}_gate", **dense)(h)
        h = gate * keras.layers.Dense(14336, name=f"b{n}_up", **dense)(h)
        x = x + keras.layers.Dense(4096, name=f"b{n}_down", **dense)(h)
    x = keras.layers.RMSNormalization(name="norm")(x)
    return keras.Model(tokens, keras.layers.Dense(128256, use_bias=False, name="head")(x))


def test_llama_3_8b_is_planned_without_its_memory():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        before, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = sharding_report(llama_8b, HeadParallel(8, rules=RULES, mlp=True), length=64)
        seconds = time.process_time() - before
        split = sharding_report(llama_8b, HeadParallel(4, rules=RULES, mlp=True), length=64)
    finally:
        keras.config.set_dtype_policy(policy)
    assert report.weights == 8_030_261_248
    assert report.summary.startswith(
        "8.03 billion weights, 14.96 GiB in bfloat16; 1.87 GiB on each of 8 devices."
    )
    assert report.summary.endswith("Replicated: 65 norms (0.5 MiB).")
    assert round(split.bytes_per_device / 2**30, 2) == 3.74
    assert seconds <= 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory <= 2**20  # KiB


# Counting -------------------------------------------------------------------------------------


def test_collectives_in_loops_are_counted_as_such():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    x = jax.ShapeDtypeStruct((16, 24), "float32", sharding=spec)

    def looped(x):
        # Each step needs the sum over all devices of the step before.
        return jax.lax.fori_loop(0, 5, lambda _, y: y + x.sum(axis=1, keepdims=True) * y, x).sum()

    counts = count_collectives(jax.jit(looped).lower(x).compile().as_text())
    assert sum(counts.values()) >= 2
    assert {operation for operation, _ in counts} == {"all-reduce"}

    def step(y, _):
        return y + (y * x0(y)).sum(axis=1, keepdims=True), None

    def x0(y):
        return jax.numpy.sin(y)

    counts = count_collectives(
        jax.jit(lambda x: jax.lax.scan(step, x, None, length=5)[0]).lower(x).compile().as_text()
    )
    assert counts == {("all-reduce", True): 1}
    assert describe(counts, 1) == "1 all-reduce in each step of a loop"
    assert describe(counts - counts, 2) == "no collective operation"
