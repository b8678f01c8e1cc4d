"""One attention problem in the engine's own layout, and what a block of it is.

Every way of computing attention (plain, blocked, fused) and the scores are made
of the functions here, so that a mask, bias, cap, sink or dropout is written once.
"""

import dataclasses

import keras
from keras import ops

from kerasattention.attend import softmax
from kerasattention.attend.bias import BlockBias
from kerasattention.attend.dropout import keep_block
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Span,
    Tensor,
    accumulator_of,
    group_heads,
    matmul,
    slice_axis,
    stack_groups,
    transpose_last,
    unstack_groups,
    wants_float32_inputs,
)


@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """What is to be computed, with heads grouped.

    Attributes:
        query: (B, K, G, T, H).
        key: (B, K, S, H).
        value: (B, K, S, Hv).
        scale: Factor of the logits; 1 in a problem that is `scaled()`.
        sink: None or (K, G) float32.
        seed: None or two int32; needed where `rate` > 0.
        rate: Dropout rate of the attention weights.
        soft_cap: None or the cap of the logits.
        first_sample: Index of the first sample where this is a part of a batch.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: AttentionMask
    scale: float = 1.0
    bias: BlockBias | None = None
    sink: Tensor | None = None
    seed: Tensor | None = None
    rate: float = 0.0
    soft_cap: float | None = None
    first_sample: Tensor | int = 0

    @property
    def kv_heads(self) -> int:
        return self.key.shape[1]

    @property
    def groups(self) -> int:
        return self.query.shape[2]

    @property
    def accumulator(self) -> str:
        """The dtype of logits and weights: float32, or float64 where the inputs are."""
        return accumulator_of(self.query.dtype)

    @property
    def may_be_empty(self) -> bool:
        """Whether a query may see no key. A bias can hide one by minus infinity."""
        if not self.key.shape[2]:  # none, or a number that is not known
            return True
        return self.mask.may_leave_a_query_without_keys or self.bias is not None

    def widened(self) -> "AttentionInputs":
        """The same problem in the precision that products outside accelerators need."""
        query, key, value = self.query, self.key, self.value
        if wants_float32_inputs(keras.backend.standardize_dtype(query.dtype)):
            query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
        return dataclasses.replace(self, query=query, key=key, value=value)

    def scaled(self) -> "AttentionInputs":
        """The same problem widened, and with the scale in the query.

        A kernel with a scale and a wide accumulator of its own needs neither.
        """
        wide = self.widened()
        if self.scale == 1.0:
            return wide
        # Scaled before the product: the logits of float16 inputs would overflow.
        # A Python number: a tensor made of it would be float32, whatever the query is.
        query = wide.query * self.scale
        return dataclasses.replace(wide, query=query, scale=1.0)

    def rows(self) -> Span:
        return Span(0, ops.shape(self.query)[3])

    def columns(self) -> Span:
        return Span(0, ops.shape(self.key)[2])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor it holds by name, those with a gradient among them."""
        named = {"query": self.query, "key": self.key, "value": self.value}
        named |= {"sink": self.sink} if self.sink is not None else {}
        named |= {"seed": self.seed} if self.seed is not None else {}
        named |= {f"mask/{k}": v for k, v in self.mask.tensors().items()}
        if self.bias is not None:
            named |= {f"bias/{k}": v for k, v in self.bias.tensors().items()}
        return named

    def with_tensors(self, named: dict[str, Tensor]) -> "AttentionInputs":
        """The same problem of other tensors: what a function transform hands back."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in named.items()
                if name.startswith(prefix)
            }

        bias = self.bias
        return dataclasses.replace(
            self,
            query=named["query"],
            key=named["key"],
            value=named["value"],
            sink=named.get("sink"),
            seed=named.get("seed"),
            mask=self.mask.with_tensors(under("mask/")),
            bias=bias if bias is None else bias.with_tensors(under("bias/")),
        )

    def without_tensors(self) -> "AttentionInputs":
        """What is left for `with_tensors()`: hashable, so that JAX compiles it once."""
        bias = self.bias
        if bias is not None:
            bias = bias.with_tensors(dict.fromkeys(bias.tensors()))
        return dataclasses.replace(
            self,
            query=None,
            key=None,
            value=None,
            sink=None,
            seed=None,
            mask=self.mask.without_tensors(),
            bias=bias,
        )

    def differentiable(self) -> list[str]:
        """Names of the tensors that have a gradient."""
        names = ["query", "key", "value"]
        names += ["sink"] if self.sink is not None else []
        if self.bias is not None:
            names += [f"bias/{name}" for name in self.bias.tensors()]
        return names


def block_logits(inputs: AttentionInputs, rows: Span, columns: Span) -> tuple[Tensor, Tensor]:
    """Logits (B, K, G, t, s) with and without bias and mask (the cap applied to both)."""
    query = stack_groups(slice_axis(inputs.query, 3, rows))
    key = slice_axis(inputs.key, 2, columns)
    logits = matmul(query, transpose_last(key))
    logits = unstack_groups(logits, inputs.groups)  # (B, K, G, t, s)
    capped = softmax.cap(logits, inputs.soft_cap)
    logits = capped
    if inputs.bias is not None:
        bias = inputs.bias.block(inputs.mask, rows, columns)
        bias = ops.cast(bias, inputs.accumulator)
        logits = logits + group_heads(bias, inputs.kv_heads)
    mask = inputs.mask.block(rows, columns)
    if mask is not None:
        logits = softmax.mask_logits(logits, group_heads(mask, inputs.kv_heads))
    return logits, capped


def sink_logits(inputs: AttentionInputs) -> Tensor | None:
    """(1, K, G, 1, 1), to be joined to the logits of a block."""
    if inputs.sink is None:
        return None
    return ops.cast(inputs.sink, inputs.accumulator)[None, :, :, None, None]


def keep_factor(inputs: AttentionInputs, rows: Span, columns: Span) -> Tensor | None:
    """(B, K, G, t, s): 0 where a weight is dropped, 1 / (1 - rate) elsewhere."""
    if inputs.rate == 0.0:
        return None
    batch, kv_heads, groups = ops.shape(inputs.query)[:3]
    keep = keep_block(
        inputs.seed,
        Span(inputs.first_sample, batch),
        kv_heads * groups,
        rows,
        columns,
        inputs.rate,
    )
    keep = group_heads(keep, inputs.kv_heads)
    return ops.cast(keep, inputs.accumulator) * (1.0 / (1.0 - inputs.rate))


def combine(weights: Tensor, value: Tensor, groups: int) -> Tensor:
    """(B, K, G, t, s) weights and (B, K, s, Hv) values to (B, K, G, t, Hv)."""
    weights = ops.cast(weights, value.dtype)
    return unstack_groups(matmul(stack_groups(weights), value), groups)


def forward_block(inputs: AttentionInputs, rows: Span, columns: Span) -> tuple[Tensor, Tensor]:
    """The output (B, K, G, t, Hv) of some queries over all keys that they see.

    Returns:
        The output and the log of the softmax's denominator (B, K, G, t, 1),
        from which a backward pass restores the weights; 0 for a row without keys.
    """
    logits, _ = block_logits(inputs, rows, columns)
    numerator, denominator, row_max = softmax.exponentiate(
        logits, sink_logits(inputs), inputs.may_be_empty
    )
    keep = keep_factor(inputs, rows, columns)
    if keep is not None:
        numerator = numerator * keep
    value = slice_axis(inputs.value, 2, columns)
    output = combine(numerator, value, inputs.groups)
    # Dividing the output is S / Hv times less work than dividing the weights.
    output = output * softmax.reciprocal(denominator, inputs.may_be_empty)
    empty = denominator == 0.0
    lse = row_max + ops.log(ops.where(empty, 1.0, denominator))
    return output, lse
