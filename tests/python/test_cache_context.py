"""What a query may attend with a cache, against the rule for each pair of positions."""

import numpy as np
import pytest
from keras import ops

import kerasattention as ka
from backends import tensor, to_numpy
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from kerasattention.decoding.cache.context import CacheContext, StepInfo
from kerasattention.decoding.cache.spec import CacheSpec
from kerasattention.decoding.cache.storage import ArrayStorage

B, K, H, LENGTH = 2, 3, 5, 17
PADDING = np.array([0, 2], "int32")
LAYER = ka.GroupQueryAttention(H, K, K)


def runs(sizes, window, padding):
    """For each run: the first index, the keys that the layer gets, and which are visible."""
    spec = CacheSpec("a", K, H, H, "float32", window, cross=False, masked=False)
    storage, start = ArrayStorage.allocate((spec,), B, LENGTH), 0
    for size in sizes:
        info = StepInfo(start, None, start == 0, None if padding is None else tensor(padding))
        context = CacheContext((spec,), storage, info, {}, length=size, max_length=LENGTH)
        # The key of index i holds the number i + 1 throughout, so that it can be told.
        index = np.arange(start, start + size, dtype="float32") + 1
        key = tensor(np.broadcast_to(index[None, :, None, None], (B, size, K, H)))
        key, _ = context.project(LAYER, True, lambda key=key: (key, key))
        mask = AttentionMask(causal=True, window=window)
        held, _, mask = context.update_cache(LAYER, key, key, mask, True)
        count = held.shape[1]
        visible = mask.block_mask(Span(0, size), Span(0, count))
        full = np.broadcast_to(to_numpy(visible), (B, 1, size, count))[:, 0]
        yield start, np.rint(to_numpy(held)[:, :, 0, 0]).astype(int) - 1, full
        start += size


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole rows", "padded rows"])
@pytest.mark.parametrize("window", [None, 3, 5])
@pytest.mark.parametrize("sizes", [(4, 1, 1, 1), (7, 2, 1, 4)])
def test_queries_see_the_indices_of_their_row_and_window(sizes, window, padding):
    for start, held, visible in runs(sizes, window, padding):
        for row in range(B):
            first = 0 if padding is None else padding[row]
            for t in range(visible.shape[1]):
                at = start + t
                if at < first:  # padding itself, whose output nobody reads
                    continue
                seen = sorted(held[row][visible[row, t]])
                least = first if window is None else max(first, at - window + 1)
                assert seen == list(range(least, at + 1))


def test_padding_reaches_no_cache():
    *_, (_, held, _) = runs((4, 1), None, PADDING)
    assert held[1, :3].tolist() == [-1, -1, 2]


def test_keys_of_another_input_are_kept_from_prefill():
    spec = CacheSpec("a", K, H, H, "float32", None, cross=True, masked=False)
    x = tensor(np.random.default_rng(4).normal(size=(B, 7, K, H)))
    kept = {}
    for info in (StepInfo(), StepInfo(4, None, False)):
        context = CacheContext((spec,), ArrayStorage([{}]), info, kept, length=1, max_length=LENGTH)
        compute = (lambda: (x, 2 * x)) if info.is_prefill else None
        key, value = context.project(LAYER, False, compute)
        np.testing.assert_array_equal(to_numpy(key), to_numpy(x))
        np.testing.assert_array_equal(to_numpy(value), to_numpy(ops.multiply(x, 2.0)))
