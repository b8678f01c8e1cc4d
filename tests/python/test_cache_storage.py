"""Arrays of caches: each storage of the backend writes what the others write."""

import numpy as np
import pytest

from backends import BACKEND, tensor, to_numpy
from kerasattention.decoding.cache.spec import CacheSpec
from kerasattention.decoding.cache.storage import (
    ArrayStorage,
    LengthError,
    TensorStorage,
    VariableStorage,
    cache_bytes,
    check_memory,
)

B, K, S, H = 2, 3, 7, 5
SPECS = tuple(
    CacheSpec(name, K, H, H, "float32", window, cross=False, masked=masked)
    for name, window, masked in (("a", None, True), ("b", 3, False))
)
MAKERS = {
    "jax": [ArrayStorage.allocate],
    "tensorflow": [ArrayStorage.allocate, VariableStorage],
    "torch": [ArrayStorage.allocate, TensorStorage],
}[BACKEND]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__qualname__)
def storage(request):
    return request.param(SPECS, B, S)


def numbers(*shape):
    return np.random.default_rng(3).normal(size=shape).astype("float32")


def read(storage, call):
    return to_numpy(storage.read(call, "value"))


@pytest.mark.parametrize("start", [2, "a tensor"])
def test_a_write_changes_its_slots_of_its_call(storage, start):
    x = numbers(B, K, 2, H)
    where = 2 if start == 2 else tensor(np.int32(2))
    expected = np.zeros((B, K, S, H), "float32")
    expected[:, :, 2:4] = x
    whole = storage.write(0, "value", -2, where, tensor(x))
    np.testing.assert_array_equal(to_numpy(whole), expected)
    np.testing.assert_array_equal(read(storage, 0), expected)
    assert not read(storage, 1).any()


def test_a_replacement_takes_the_place_of_the_whole_array(storage):
    x = numbers(B, K, 3, H)
    storage.replace(1, "value", tensor(x))
    np.testing.assert_array_equal(read(storage, 1), x)
    assert not read(storage, 0).any()


def test_storages_in_place_clear_what_an_earlier_sequence_left():
    for maker in MAKERS[1:]:
        storage = maker(SPECS, B, S)
        x = numbers(B, K, S, H)
        storage.replace(0, "value", tensor(x))
        storage.clear(0, "value", -2, 4)
        x[:, :, 4:] = 0.0
        np.testing.assert_array_equal(read(storage, 0), x)


def test_the_bytes_of_all_caches_are_counted_before_they_are_allocated():
    floats = 2 * B * K * H * (S + 3)
    assert cache_bytes(SPECS, B, S) == 4 * floats + B * S
    check_memory(2**20, B, S)
    with pytest.raises(LengthError, match=r"`batch_size` = 2 rows of `max_length` = 7 tokens"):
        check_memory(2**60, B, S)
