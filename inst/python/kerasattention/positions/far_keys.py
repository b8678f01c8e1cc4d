"""Products of keys with the relative queries of the farthest distances.

No block of queries changes them: a key that is too far ahead of one, or behind, has the same
product with all of its queries. Shape letters as in `positions/offsets.py`.
"""

from keras import ops

from kerasattention.attend.tensors import Columns, Tensor, slice_axis


def far_products(key: Tensor, rows: Tensor) -> Tensor:
    """Keys (B, S, N, H) times rows (2, N|1, H), before and behind: (B, S, N, 2)."""
    if rows.shape[1] == 1:
        return ops.einsum("bsnh,eh->bsne", key, rows[:, 0])
    return ops.einsum("bsnh,enh->bsne", key, rows)


def key_gradient(gradient: Tensor, rows: Tensor) -> Tensor:
    """The gradient of the keys (B, S, N, H), of that of the products (B, S, N, 2)."""
    if rows.shape[1] == 1:
        return ops.einsum("bsne,eh->bsnh", gradient, rows[:, 0])
    return ops.einsum("bsne,enh->bsnh", gradient, rows)


def rows_gradient(gradient: Tensor, key: Tensor, heads: int) -> Tensor:
    """The gradient of the rows (2, N|1, H), with N|1 heads."""
    found = ops.einsum("bsne,bsnh->enh", gradient, key)  # (2, N, H)
    return ops.sum(found, axis=1, keepdims=True) if heads == 1 else found


def of_block(products: Tensor, columns: Columns, side: int) -> Tensor:
    """The products of a block's keys, before (-1) or behind (1) its queries: (B, N, 1, s)."""
    part = slice_axis(products, 1, columns)[..., _place(side)]  # (B, s, N)
    return ops.transpose(part, (0, 2, 1))[:, :, None]  # (B, N, 1, s)


def gradient_of_block(gradient: Tensor, side: int) -> Tensor:
    """Of a block's products (B, s, N, 2), where that of its pairs is (B, N, t, s)."""
    of_keys = ops.transpose(ops.sum(gradient, axis=2), (0, 2, 1))[..., None]  # (B, s, N, 1)
    parts = [ops.zeros_like(of_keys), ops.zeros_like(of_keys)]
    parts[_place(side)] = of_keys
    return ops.concatenate(parts, axis=-1)  # (B, s, N, 2)


def _place(side: int) -> int:
    return 0 if side < 0 else 1
