"""What a device holds of a decoder's caches."""

import gc

import jax
import keras
import numpy as np
import pytest

import kerasattention as ka


def bytes_on_first_device():
    gc.collect()
    shards = [shard for x in jax.live_arrays() for shard in x.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device.id == 0)


def test_a_device_holds_its_part_of_the_caches_and_little_else():
    with ka.with_distribution(ka.HeadParallel(4, batch=2)):
        tokens = keras.Input((None,), dtype="int32")
        x = keras.layers.Embedding(61, 12)(tokens)
        x = ka.GroupQueryAttention(64, 8, 4)(x, use_causal_mask=True)
        model = keras.Model(tokens, keras.layers.Dense(61)(x))
        before = bytes_on_first_device()
        decoder = ka.IncrementalDecoder(model, 4, 4096)
        made = bytes_on_first_device() - before
        decoder.prefill(np.ones((4, 16), "int32"))
        used = bytes_on_first_device() - before
    part = decoder.cache_bytes / 8
    assert part <= made == pytest.approx(part, rel=0.1)
    assert used == pytest.approx(part, rel=0.1)
