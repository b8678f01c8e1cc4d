"""Latent attention whose heads are split over devices: latents stay whole on each."""

import keras
import numpy as np
import pytest
from models import WIDTH, WORDS, specs, tokens, trained

import kerasattention as ka
from kerasattention import HeadParallel, check_sharding, with_distribution


def decoder(heads=8):
    keras.utils.set_random_seed(3)
    given = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(WORDS, WIDTH, name="tok")(given)
    layer = ka.LatentAttention(
        heads, 5, 7, query_rank=11, rotary_dim=4, value_dim=3, name="att", use_bias=True
    )
    x = keras.layers.Add()([x, layer(x, use_causal_mask=True)])
    model = keras.Model(given, keras.layers.Dense(WORDS, name="head")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def test_heads_are_split_and_numbers_stay():
    expected = trained(decoder())
    with with_distribution(HeadParallel(4)):
        model = decoder()
        check_sharding(model)
        found = trained(model)
        split = {path: spec for path, spec in specs(model).items() if path.startswith("att/")}
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    owners = ("query", "key", "value", "attention_output")
    assert set(split) == {f"att/{owner}/kernel" for owner in owners}
    assert all("model_kv" in str(spec) for spec in split.values())


def test_steps_are_those_of_one_device():
    x, _ = tokens(8)
    whole = ka.generate(decoder(), x, 6)
    with with_distribution(HeadParallel(4)):
        model = decoder()
        shared = ka.generate(model, x, 6)
        steps = ka.IncrementalDecoder(model, 8, 16)
        steps.prefill(x)
        assert steps.cache_bytes == 8 * 16 * (7 + 4) * 4
        (arrays,) = steps._runner.arrays
        assert arrays["key"].addressable_shards[0].data.shape[0] == 8 // 2  # rows
    np.testing.assert_array_equal(shared, whole)


def test_heads_that_do_not_divide_are_refused():
    with with_distribution(HeadParallel(4)), pytest.raises(ValueError, match="cannot be split"):
        decoder(heads=6)
