"""Biases of the logits that are products of queries, or keys, with rows of a table.

Shape letters as in `positions/offsets.py`.
"""

import dataclasses
from collections.abc import Callable

import keras
from keras import ops

from kerasattention.attend.add_at import add_at
from kerasattention.attend.bias import add_in_place
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Axes,
    Columns,
    KeySpans,
    Span,
    Tensor,
    is_static,
    matmul,
    pad_columns,
    shape_of,
    slice_axis,
    split_columns,
    transpose_last,
)
from kerasattention.positions import far_keys
from kerasattention.positions.offsets import Offsets, Uniform, divided, offsets_of


@dataclasses.dataclass(frozen=True)
class KeyBias:
    """The product of each query with the relative key of its distance to a key.

    With `sees_keys` also that of each key with the relative query of the distance. Only the
    products of a block are held: of its queries with the rows of its distances. The queries
    are a tensor of the bias, so that a kernel finds their gradient as that of any other bias.

    Attributes:
        query: (B, T, N, H).
        table: (E, N|1, H), the relative keys.
        entries: The row of each distance, key less query, from -M to M.
        scale: Factor of the products, that of the logits.
        key: (B, S, N, H), where it sees keys.
        key_table: (E, N|1, H), the relative queries.
        sees_keys: Whether it has `key` and `key_table`.
        dtype: In which the bias is computed.
        far: None or (B, S, N, 2), the products of each key with the relative queries of the
            farthest distances, before and behind: no block of queries changes them.
    """

    query: Tensor
    table: Tensor
    entries: tuple[int, ...]
    scale: float
    key: Tensor | None = None
    key_table: Tensor | None = None
    sees_keys: bool = False
    dtype: str = "float32"
    far: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        found = {"query": self.query, "table": self.table}
        if self.sees_keys:
            found |= {"key": self.key, "key_table": self.key_table}
        return found | ({} if self.far is None else {"far": self.far})

    def differentiable(self) -> list[str]:
        return list(self.tensors())

    def axes(self, name: str) -> Axes:
        if name in ("query", "key", "far"):
            return ("batch", None, "heads", None)
        return (None, "heads", None)

    def with_tensors(self, tensors: dict[str, Tensor]) -> "KeyBias":
        return dataclasses.replace(self, **tensors)

    def map_queries(self, change: Callable[[Tensor, int], Tensor]) -> "KeyBias":
        if self.query.shape[1] == 1:
            return self
        return dataclasses.replace(self, query=change(self.query, 1))

    def with_head_tensors(self) -> "KeyBias":
        return self

    def in_precision(self, dtype: str) -> "KeyBias":
        return dataclasses.replace(self, dtype=dtype)

    def with_shared_products(self, mask: AttentionMask) -> "KeyBias":
        # JAX's loops have tiles of any place, whose keys are not divided.
        is_divided = mask.positions_are_indices and keras.backend.backend() != "jax"
        if not self.sees_keys or not is_divided:
            return self
        products = far_keys.far_products(ops.cast(self.key, self.dtype), self._far_rows())
        return dataclasses.replace(self, far=products * self.scale)  # (B, S, N, 2)

    def fold_shared_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        if "far" not in gradients:
            return gradients
        far = gradients["far"] * self.scale  # (B, S, N, 2)
        count, heads, size = self.key_table.shape
        key = ops.cast(self.key, self.dtype)  # (B, S, N, H)
        of_rows = ops.reshape(far_keys.rows_gradient(far, key, heads), (2, -1))  # (2, (N|1) * H)
        of_table = sum(
            Uniform(entry).rows_gradient(of_rows[place : place + 1], count)
            for place, entry in enumerate(self._far_entries())
        )  # (E, (N|1) * H)
        added = {
            "key": far_keys.key_gradient(far, self._far_rows()),  # (B, S, N, H)
            "key_table": ops.reshape(of_table, (count, heads, size)),  # (E, N|1, H)
        }
        kept = {name: x for name, x in gradients.items() if name != "far"}
        return kept | {name: kept[name] + x if name in kept else x for name, x in added.items()}

    def _far_entries(self) -> tuple[int, int]:
        """The rows of the farthest distances, before and behind."""
        return self.entries[0], self.entries[-1]

    def _far_rows(self) -> Tensor:
        """(2, N|1, H), of the relative queries."""
        rows = [self.key_table[entry] for entry in self._far_entries()]  # (N|1, H)
        return ops.cast(ops.stack(rows), self.dtype)  # (2, N|1, H)

    def block(self, mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
        """(B, N, t, s), or (B, N, t, 1) where all keys are far."""
        parts = divided(mask, len(self.entries) // 2, rows, columns)
        biases = [self._block(mask, rows, *part) for part in parts]  # (B, N, t, s|1)
        if len(biases) == 1:
            return biases[0]
        if self.far is not None:
            return ops.concatenate(biases, axis=-1)  # (B, N, t, s)
        batch, heads, length, _ = shape_of(biases[0])
        sizes = [(batch, heads, length, span.size) for span, _ in parts]
        whole = [ops.broadcast_to(x, size) for x, size in zip(biases, sizes, strict=True)]
        return ops.concatenate(whole, axis=-1)  # (B, N, t, s)

    def _offsets(
        self, mask: AttentionMask, rows: Span, columns: Columns, side: int | None
    ) -> Offsets:
        """`side` is -1 or 1 where all keys are farther than any relative key, before or behind."""
        if side is not None:
            return Uniform(self._far_entries()[0 if side < 0 else 1])
        return offsets_of(self.entries, mask, rows, columns)

    def _block(self, mask: AttentionMask, rows: Span, columns: Columns, side: int | None) -> Tensor:
        """(B, N, t, s|1)."""
        offsets = self._offsets(mask, rows, columns, side)
        query, table = self._of_block(self.query, rows), self._rows(self.table, offsets)
        bias = offsets.spread(_products(query, table))  # (B, N, t, s|1)
        if not self.sees_keys:
            return bias
        if side is not None and self.far is not None:
            return bias + far_keys.of_block(self.far, columns, side)  # (B, N, t, s)
        offsets = offsets.of_keys()
        key, table = self._of_block(self.key, columns), self._rows(self.key_table, offsets)
        of_keys = offsets.spread(_products(key, table))  # (B, N, s, t)
        return bias + transpose_last(of_keys)  # (B, N, t, s)

    def block_gradient(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        for span, found in self._parts(gradient, mask, rows, columns):
            spans = _places(rows, span)
            for name, part in found.items():
                if name in spans:
                    part = _placed(part, spans[name], shape_of(self.tensors()[name])[1])
                totals[name] = totals[name] + part if name in totals else part
        return totals  # (B, T, N, H), (E, N|1, H), (B, S, N, H), (E, N|1, H), (B, S, N, 2)

    def add_gradients(
        self,
        totals: dict[str, Tensor],
        gradient: Tensor,
        mask: AttentionMask,
        rows: Span,
        columns: Columns,
        heads: Span | None = None,
    ) -> dict[str, Tensor]:
        """As `block_gradient()`, added to the gradients so far where the tokens of the block are.

        To place them among zeros first was a pass over all queries and keys for each block.
        """
        totals = dict(totals)
        for span, found in self._parts(gradient, mask, rows, columns):
            spans = _places(rows, span)
            for name, part in found.items():
                others = {} if heads is None else {self.axes(name).index("heads"): heads}
                if name in spans:
                    totals[name] = add_in_place(totals[name], part, 1, spans[name], others)
                elif heads is None or shape_of(totals[name])[1] == 1:
                    totals[name] = totals[name] + part
                else:
                    totals[name] = add_at(totals[name], others, part)
        return totals

    def _parts(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> list[tuple[Columns, dict[str, Tensor]]]:
        """The keys of a block in parts, each with the gradients of its tokens and the tables."""
        parts = divided(mask, len(self.entries) // 2, rows, columns)
        if len(parts) == 1:
            return [(columns, self._parts_of(gradient, mask, rows, *parts[0]))]
        found, start = [], 0
        for span, side in parts:
            of_span = slice_axis(gradient, 3, Span(start, span.size))  # (B, N, t, s)
            found.append((span, self._parts_of(of_span, mask, rows, span, side)))
            start = start + span.size
        return found

    def _parts_of(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns, side: int | None
    ) -> dict[str, Tensor]:
        offsets = self._offsets(mask, rows, columns, side)
        query, table = self._gradients(gradient, self.query, self.table, offsets, rows)
        found = {"query": query, "table": table}  # (B, t, N, H), (E, N|1, H)
        if not self.sees_keys:
            return found
        if side is not None and self.far is not None:
            found["far"] = far_keys.gradient_of_block(gradient, side)  # (B, s, N, 2)
        else:
            gradient = transpose_last(gradient)  # (B, N, s, t)
            offsets = offsets.of_keys()
            key, table = self._gradients(gradient, self.key, self.key_table, offsets, columns)
            found |= {"key": key, "key_table": table}  # (B, s, N, H), (E, N|1, H)
        return found

    def _of_block(self, x: Tensor, span: Columns) -> Tensor:
        """The queries or keys of a block, (B, N, t, H)."""
        part = ops.cast(slice_axis(x, 1, span), self.dtype) * self.scale  # (B, t, N, H)
        return ops.transpose(part, (0, 2, 1, 3))  # (B, N, t, H)

    def _rows(self, table: Tensor, offsets: Offsets) -> Tensor:
        """The rows of a block, (N|1, L, H)."""
        rows = ops.cast(offsets.rows(table), self.dtype)  # (L, N|1, H)
        return ops.transpose(rows, (1, 0, 2))  # (N|1, L, H)

    def _gradients(
        self, gradient: Tensor, x: Tensor, table: Tensor, offsets: Offsets, span: Columns
    ) -> tuple[Tensor, Tensor]:
        """Of a part of x, (B, t, N, H), and of a table, for a gradient (B, N, t, s)."""
        products = offsets.collect(ops.cast(gradient, self.dtype))  # (B, N, t, L)
        part, rows = self._of_block(x, span), self._rows(table, offsets)
        of_part = _products(products, transpose_last(rows)) * self.scale  # (B, N, t, H)
        of_part = ops.transpose(of_part, (0, 2, 1, 3))  # (B, t, N, H)
        of_rows = ops.sum(matmul(transpose_last(products), part), axis=0)  # (N, L, H)
        heads, size = table.shape[1], table.shape[2]
        if heads == 1:
            of_rows = ops.sum(of_rows, axis=0, keepdims=True)  # (1, L, H)
        of_rows = ops.transpose(of_rows, (1, 0, 2))  # (L, N|1, H)
        flat = ops.reshape(of_rows, (-1, heads * size))  # (L, (N|1) * H)
        of_table = offsets.rows_gradient(flat, table.shape[0])  # (E, (N|1) * H)
        of_table = ops.reshape(of_table, (table.shape[0], heads, size))  # (E, N|1, H)
        return of_part, of_table


def _products(x: Tensor, rows: Tensor) -> Tensor:
    """(B, N, t, X) times the rows (N|1, L, X) of each head: (B, N, t, L).

    Not as a product that broadcasts over the batch: oneDNN, which TensorFlow calls on CPUs, gives
    other numbers for one of (B, 1, t, X) and (1, 1, X, L), without an error (TensorFlow 2.21).
    """
    if rows.shape[0] == 1:
        return ops.einsum("bntx,lx->bntl", x, rows[0])
    return ops.einsum("bntx,nlx->bntl", x, rows)


def _places(rows: Span, columns: Columns) -> dict[str, Columns]:
    """Where the gradients of tokens belong, by the name of the tensor."""
    return {"query": rows, "key": columns, "far": columns}


def _placed(part: Tensor, span: Columns, length: int) -> Tensor:
    """(B, t, N, H) in its place of zeros (B, T, N, H); the place may be a tensor."""
    starts = [each.start for each in (span.spans if isinstance(span, KeySpans) else (span,))]
    if is_static(*starts):
        return pad_columns(part, 1, span, length)  # (B, T, N, H)
    batch, _, heads, size = shape_of(part)
    whole = ops.zeros((batch, length, heads, size), dtype=part.dtype)  # (B, T, N, H)
    for each, of_span in split_columns(part, 1, span):
        here = slice_axis(whole, 1, each)  # (B, t, N, H)
        whole = ops.slice_update(whole, (0, each.start, 0, 0), here + of_span)
    return whole  # (B, T, N, H)
