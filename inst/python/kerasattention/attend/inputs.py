"""`AttentionInputs`: the inputs of one attention call in the engine's own layout."""

import dataclasses

import keras
from keras import ops

from kerasattention.attend.bias import BlockBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.shared_products import fold_shared_gradients, with_shared_products
from kerasattention.attend.softmax import MASKED_OUT
from kerasattention.attend.tensors import (
    Span,
    Tensor,
    accumulator_of,
    shape_of,
    wants_float32_inputs,
)


@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """Arrays and options of one attention call, with heads grouped.

    Attributes:
        query: (B, K, G, T, H).
        key: (B, K, S, H).
        value: (B, K, S, Hv).
        scale: Factor of the logits; 1 after `scaled()`.
        sink: None or (K, G) float32.
        seed: None or two int32; needed where `rate` > 0.
        rate: Dropout rate of the attention weights.
        soft_cap: None or the cap of the logits.
        first_sample: Batch offset: index of the first sample, where these are a part of a batch.
        first_head: Index of the first query head, where these are a part of the heads.
        first_query: Index of the first query, where these are a part of a sequence.
        first_key: Of the first key.
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
    first_head: Tensor | int = 0
    first_query: Tensor | int = 0
    first_key: Tensor | int = 0

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
        """Whether a query may see no key. A bias can mask keys out by minus infinity."""
        if not self.key.shape[2]:  # none, or a number that is not known
            return True
        return self.mask.may_mask_out_all_keys or self.bias is not None

    @property
    def masked_out(self) -> float:
        """What is added to the logits of masked-out keys.

        `tf.debugging.enable_check_numerics()` refuses infinities. A bias may be as low as any
        number, all others are far above 1e30.
        """
        is_finite = keras.backend.backend() == "tensorflow" and self.bias is None
        return -1e30 if is_finite else MASKED_OUT

    def widened(self) -> "AttentionInputs":
        """The same inputs in the precision that products outside accelerators need."""
        query, key, value = self.query, self.key, self.value
        if wants_float32_inputs(keras.backend.standardize_dtype(query.dtype)):
            query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
        return dataclasses.replace(self, query=query, key=key, value=value)

    def scaled(self) -> "AttentionInputs":
        """The same inputs widened, and with the scale in the query.

        A kernel that scales and accumulates in float32 by itself needs neither.
        """
        wide = self.widened()
        if self.scale == 1.0:
            return wide
        # Scaled before the product: the logits of float16 inputs would overflow.
        # A Python number: a tensor made of it would be float32, whatever the query is.
        query = wide.query * self.scale
        return dataclasses.replace(wide, query=query, scale=1.0)

    def rows(self) -> Span:
        return Span(0, shape_of(self.query)[3])

    def columns(self) -> Span:
        return Span(0, shape_of(self.key)[2])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, with and without a gradient."""
        named = {"query": self.query, "key": self.key, "value": self.value}
        named |= {"sink": self.sink} if self.sink is not None else {}
        named |= {"seed": self.seed} if self.seed is not None else {}
        named |= {k: v for k, v in self._offsets().items() if not isinstance(v, int)}
        named |= {f"mask/{k}": v for k, v in self.mask.tensors().items()}
        if self.bias is not None:
            named |= {f"bias/{k}": v for k, v in self.bias.tensors().items()}
        return named

    def with_tensors(self, named: dict[str, Tensor]) -> "AttentionInputs":
        """The same inputs of other tensors, which a function transform hands back."""
        bias = self.bias
        return dataclasses.replace(
            self,
            query=named["query"],
            key=named["key"],
            value=named["value"],
            sink=named.get("sink"),
            seed=named.get("seed"),
            first_sample=named.get("first_sample", self.first_sample),
            first_head=named.get("first_head", self.first_head),
            mask=self.mask.with_tensors(tensors_under("mask/", named)),
            bias=bias if bias is None else bias.with_tensors(tensors_under("bias/", named)),
        )

    def without_tensors(self) -> "AttentionInputs":
        """All but the tensors, for `with_tensors()`: hashable, so that JAX compiles it once."""
        bias = self.bias
        if bias is not None:
            bias = bias.with_tensors(dict.fromkeys(bias.tensors()))
        offsets = {k: v if isinstance(v, int) else None for k, v in self._offsets().items()}
        return dataclasses.replace(
            self,
            **offsets,
            query=None,
            key=None,
            value=None,
            sink=None,
            seed=None,
            mask=self.mask.without_tensors(),
            bias=bias,
        )

    def with_shared_products(self) -> "AttentionInputs":
        """The same inputs, whose bias holds the products that all blocks share."""
        if self.bias is None:
            return self
        return dataclasses.replace(self, bias=with_shared_products(self.bias, self.mask))

    def fold_shared_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the inputs before `with_shared_products()`."""
        if self.bias is None:
            return gradients
        of_bias = fold_shared_gradients(self.bias, tensors_under("bias/", gradients))
        kept = {name: x for name, x in gradients.items() if not name.startswith("bias/")}
        return kept | {f"bias/{name}": x for name, x in of_bias.items()}

    def has_samples(self, name: str) -> bool:
        """Whether the first axis of the tensor of this name is B."""
        kind, _, rest = name.partition("/")
        if kind == "mask":
            axes = self.mask.axes(rest)
        elif kind == "bias" and self.bias is not None:
            axes = self.bias.axes(rest)
        else:
            axes = ("batch",) if kind in ("query", "key", "value") else (None,)
        return axes[0] == "batch" and self.tensors()[name].shape[0] == self.query.shape[0]

    def _offsets(self) -> dict[str, Tensor | int | None]:
        return {"first_sample": self.first_sample, "first_head": self.first_head}

    def differentiable(self) -> list[str]:
        """Names of the tensors that have a gradient."""
        names = ["query", "key", "value"]
        names += ["sink"] if self.sink is not None else []
        if self.bias is not None:
            names += [f"bias/{name}" for name in self.bias.differentiable()]
        return names


def tensors_under(prefix: str, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in named.items()
        if name.startswith(prefix)
    }
