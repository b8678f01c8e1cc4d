"""The sublayer of a projection."""

from typing import Any

import keras
from keras import ops

from kerasattention.attend.tensors import Tensor


class WideProjection(keras.layers.EinsumDense):
    """An `EinsumDense` that is as precise as its float64.

    Keras's adds its bias by `ops.add()`, which from Keras 3.16 on gives float32 for two tensors of
    float64 on torch. With LoRA factors Keras adds kernels so, and this is Keras's own.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if self.lora_enabled:
            return super().call(inputs, training=training)
        output: Any = ops.einsum(self.equation, inputs, self.kernel)  # (B, ...)
        if self.bias is not None:
            bias: Any = ops.convert_to_tensor(self.bias)
            output = output + bias  # (B, ...)
        return output if self.activation is None else self.activation(output)


def projection(*args: Any, dtype: Any, **options: Any) -> keras.layers.EinsumDense:
    """An `EinsumDense` of these arguments; one of a subclass where it computes in float64."""
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    kind = WideProjection if policy.compute_dtype == "float64" else keras.layers.EinsumDense
    return kind(*args, dtype=dtype, **options)
