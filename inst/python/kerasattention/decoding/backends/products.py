"""Faster products of layers with their weights while a decoder runs.

Each backend makes one map from layers to overrides of their calls. `override_calls()` honours
it in Keras's own layers, wherever in a model they are, at prefill and in each step. This
module finds the layers whose call is a product of their input with a matrix, and overrides it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasattention._keras import Override, flatten_layers
from kerasattention.attend.tensors import Tensor, sizes_of

# By the identity of a layer.
Products = dict[int, Override]


@dataclasses.dataclass(frozen=True)
class Linear:
    """A layer that multiplies the last features of its input with a matrix (I, O).

    Attributes:
        layer: A `Dense`, an `EinsumDense` or a `ReversibleEmbedding`.
        weight: Its variable, of which the matrix is a reshaped or transposed view.
        summed: The number of input axes that are summed over.
        made: Sizes of the output axes in their place.
        transposed: Whether the matrix is the transpose of the weight: logits of an embedding.
    """

    layer: Any
    weight: keras.Variable
    summed: int
    made: tuple[int, ...]
    transposed: bool = False

    @property
    def is_int8(self) -> bool:
        return self.layer.quantization_mode == "int8"

    def matrix(self, weight: Tensor) -> Tensor:
        """(I, O) of the weight's tensor."""
        if self.transposed:
            return ops.transpose(weight)
        return ops.reshape(weight, (-1, math.prod(self.made)))

    def override(self, multiply: Callable[[Tensor], Tensor], most_rows: int | None) -> Override:
        """The layer's call by another product.

        Args:
            multiply: Maps rows (n, I) to (n, O).
            most_rows: With more rows than this the layer's own call is faster; None: never.
        """

        def call(own_call: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            outer = tuple(x.shape[: len(x.shape) - self.summed])
            is_lookup = self.transposed and not (args[0] if args else kwargs.get("reverse"))
            if is_lookup or (most_rows is not None and math.prod(outer) > most_rows):
                return own_call(x, *args, **kwargs)
            rows = ops.reshape(x, (-1, math.prod(x.shape[len(outer) :])))  # (n, I)
            output = ops.reshape(multiply(rows), (*outer, *self.made))
            if self.transposed:
                return output
            if self.layer.bias is not None:
                output = output + ops.cast(self.layer.bias, output.dtype)
            return output if self.layer.activation is None else self.layer.activation(output)

        return call


def linear_layers(model: keras.Model) -> list[Linear]:
    """The layers of a model, however deep, whose call is one product with a weight, nothing else.

    Not subclasses, other quantisations than int8, LoRA, and weights in another dtype than that
    of the computation.
    """
    found = (_as_linear(layer) for layer in flatten_layers(model) if _is_plain(layer))
    return [linear for linear in found if linear is not None]


def _is_plain(layer: Any) -> bool:
    if type(layer) not in _KINDS or "call" in vars(layer):
        return False
    if layer.quantization_mode not in (None, "int8") or getattr(layer, "lora_enabled", False):
        return False
    if layer.quantization_mode == "int8" and layer.inputs_quantizer is None:
        return False
    return layer.compute_dtype == layer.variable_dtype


def _as_linear(layer: Any) -> Linear | None:
    if type(layer) is keras.layers.Dense:
        return Linear(layer, layer.kernel, 1, sizes_of(layer.kernel)[1:])
    if type(layer) is keras.layers.EinsumDense:
        summed = summed_axes(layer.equation)
        if summed is None:
            return None
        return Linear(layer, layer.kernel, summed, sizes_of(layer.kernel)[summed:])
    plain = layer.tie_weights and layer.reverse_dtype is None and layer.logit_soft_cap is None
    if not plain:
        return None
    return Linear(layer, layer.embeddings, 1, (layer.embeddings.shape[0],), transposed=True)


_KINDS: tuple[type, ...] = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    *([keras.layers.ReversibleEmbedding] if hasattr(keras.layers, "ReversibleEmbedding") else []),
)


def summed_axes(subscripts: str) -> int | None:
    """The number of the left side's last axes that are summed with the right side's first.

    None where it is no such product, or its axes come out in another order: "btd,dnh->btnh"
    sums 1 axis, "btnh,nhd->btd" 2.
    """
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    left, comma, right = inputs.partition(",")
    summed = [x for x in left if x in right]
    count = len(summed)
    if not arrow or not comma or count == 0:
        return None
    ends_meet = left.endswith(right[:count]) and right.startswith("".join(summed))
    return count if ends_meet and output == left[:-count] + right[count:] else None
