"""The backward pass of the tiled kernel of JAX."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kerasattention.attend.bias import add_block_gradient
from kerasattention.attend.block import (
    WeightGradients,
    block_logits,
    sink_gradient,
    weight_gradients,
)
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.jax.tile_loops import (
    Named,
    TileSize,
    by_sample,
    mask_uncounted,
    over_blocks,
    over_tiles,
    put,
    put_sum,
)
from kerasattention.attend.tensors import (
    Columns,
    Span,
    matmul,
    slice_axis,
    stack_groups,
    unstack_groups,
)

Tensor = jax.Array


def backward(
    inputs: AttentionInputs, tile: TileSize, output: Tensor, lse: Tensor, upstream: Tensor
) -> Named:
    upstream = upstream.astype(inputs.accumulator)  # (B, K, G, T, Hv)
    # The softmax's own gradient: delta, the row sums of dO * O.
    delta = jnp.sum(upstream * output, axis=-1, keepdims=True)  # (B, K, G, T, 1)
    found = backward_from_lse(inputs, tile, lse, delta, upstream)
    return found | sink_gradient(inputs, lse, delta)


def backward_from_lse(
    inputs: AttentionInputs, tile: TileSize, lse: Tensor, delta: Tensor, upstream: Tensor
) -> Named:
    """The gradients of all but a sink, of the lse and delta of all keys, which may be more."""
    if tile.by_sample:
        whole = tile._replace(by_sample=False)

        def one(inputs: AttentionInputs, given: tuple[Tensor, ...]) -> Named:
            return backward_from_lse(inputs, whole, *given)

        return by_sample(inputs, one, (lse, delta, upstream))
    length = inputs.query.shape[3]

    def visit(rows: Span, wanted: Any, carry: GradientSums) -> GradientSums:
        part_lse, part_delta, part = (
            slice_axis(x, 3, rows) for x in (lse, delta, upstream)
        )  # (B, K, G, t, 1), (B, K, G, t, 1), (B, K, G, t, Hv)
        repeated = None
        if wanted is not None:
            repeated = (jnp.arange(rows.size) + rows.start < wanted)[:, None]  # (t, 1)
            # A weight of exp(-inf) for the queries that another block has, too.
            part_lse = jnp.where(repeated, jnp.inf, part_lse)  # (B, K, G, t, 1)
        query, whole = carry.block, carry.query  # (B, K, G, t, H), (B, K, G, T, H)
        carry = carry._replace(query=jnp.zeros_like(query))  # (B, K, G, t, H)
        transposed = (
            _stack_transposed(query),
            _stack_transposed(part),
        )  # (B, K, H, G * t), (B, K, Hv, G * t)
        of_products = query.astype(inputs.query.dtype)  # (B, K, G, t, H)

        def add_tile(
            inputs: AttentionInputs, columns: Columns, counted: Any, carry: GradientSums
        ) -> GradientSums:
            logits, capped = block_logits(
                inputs, rows, columns, of_products
            )  # (B, K, G, t, s), (B, K, G, t, s)
            logits = mask_uncounted(logits, counted)  # (B, K, G, t, s)
            found = weight_gradients(
                inputs, rows, columns, logits, capped, part_lse, part_delta, part
            )
            return _add_tile(inputs, rows, columns, found, transposed, carry)

        carry = over_tiles(inputs, rows, tile.columns, add_tile, carry)
        if length == rows.size:
            return carry
        gradient = carry.query  # (B, K, G, t, H)
        if repeated is not None:
            gradient = jnp.where(repeated, query, gradient)  # (B, K, G, t, H)
        whole = put(whole, gradient, 3, rows.start)  # (B, K, G, T, H)
        # Before the first block there is none, and what is read then is not used.
        first = rows.start if wanted is None else wanted
        following = Span(first - rows.size, rows.size)
        return carry._replace(query=whole, block=slice_axis(whole, 3, following))

    found = over_blocks(length, tile.rows, visit, _no_gradients(inputs, tile, delta))
    named = {"query": found.query, "key": found.key, "value": found.value}
    named = {"query": found.query, **{n: jnp.swapaxes(named[n], 2, 3) for n in ("key", "value")}}
    return named | {f"bias/{name}": x for name, x in found.bias.items()}


class GradientSums(NamedTuple):
    """Sums so far; those of keys and values are (B, K, H, S).

    The gradients of queries take the places of the queries, which no later block needs. Those of
    the next block, `block`, are read as soon as the gradients of the last one are in place: XLA
    would copy all queries in each block before it wrote to what the same block reads.
    """

    block: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    bias: Named


def _no_gradients(inputs: AttentionInputs, tile: TileSize, delta: Tensor) -> GradientSums:
    # XLA would make constant zeros at the start of the program, and hold them until they are used.
    # This is zero as well, since no number is above infinity, but only known when delta is.
    zero = jnp.any(delta > jnp.inf).astype(inputs.accumulator)  # ()
    key, value = (
        jnp.swapaxes(x, 2, 3) for x in (inputs.key, inputs.value)
    )  # (B, K, H, S), (B, K, Hv, S)
    named = inputs.tensors()
    bias = {name: named[name] for name in inputs.differentiable() if name.startswith("bias/")}
    query = inputs.query.astype(inputs.accumulator)  # (B, K, G, T, H)
    length = query.shape[3]
    rows = min(tile.rows, length)
    return GradientSums(
        slice_axis(query, 3, Span(length - rows, rows)),  # (B, K, G, t, H)
        query,
        jnp.broadcast_to(zero, key.shape),  # (B, K, H, S)
        jnp.broadcast_to(zero, value.shape),  # (B, K, Hv, S)
        {n.removeprefix("bias/"): jnp.broadcast_to(zero, x.shape) for n, x in bias.items()},
    )


def _add_tile(
    inputs: AttentionInputs,
    rows: Span,
    columns: Columns,
    found: WeightGradients,
    transposed: tuple[Tensor, Tensor],
    carry: GradientSums,
) -> GradientSums:
    batch = inputs.query.shape[0]
    query_t, upstream_t = transposed
    key = slice_axis(inputs.key, 2, columns)  # (B, K, s, H)
    bias = carry.bias
    if inputs.bias is not None:
        heads = inputs.kv_heads * inputs.groups
        gradient = jnp.reshape(found.logits, (batch, heads, rows.size, columns.size))
        bias = add_block_gradient(inputs.bias, bias, gradient, inputs.mask, rows, columns)
    return carry._replace(
        query=carry.query
        + unstack_groups(matmul(found.products, key), inputs.groups),  # (B, K, G, t, H)
        key=put_sum(carry.key, matmul(query_t, found.products), 3, columns),  # (B, K, H, S)
        value=put_sum(carry.value, matmul(upstream_t, found.weights), 3, columns),  # (B, K, Hv, S)
        bias=bias,
    )


def _stack_transposed(x: Tensor) -> Tensor:
    """(B, K, G, t, X) to (B, K, X, G * t).

    XLA multiplies by a transposed left factor at a third of the speed (65 and 205 GFLOP/s),
    so the sums over queries are computed with these and transposed at the end.
    """
    return jnp.swapaxes(stack_groups(x), 2, 3)  # (B, K, X, G * t)
