"""Products within a bias that blocks of queries have in common, computed once for a pass."""

from typing import Protocol, runtime_checkable

from kerasattention.attend.bias import BlockBias, SumOfBiases
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Tensor


@runtime_checkable
class SharingBias(Protocol):
    """A bias with products of tokens that blocks have in common."""

    def with_shared_products(self, mask: AttentionMask) -> BlockBias:
        """The same bias, which holds those products as one more tensor with a gradient."""
        ...

    def fold_shared_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of its other tensors, with what that of the products adds to them."""
        ...


def with_shared_products(bias: BlockBias, mask: AttentionMask) -> BlockBias:
    """The same bias, which computes once what all blocks share."""
    if isinstance(bias, SumOfBiases):
        return SumOfBiases(tuple(with_shared_products(part, mask) for part in bias.biases))
    return bias.with_shared_products(mask) if isinstance(bias, SharingBias) else bias


def fold_shared_gradients(bias: BlockBias, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the tensors of a bias before `with_shared_products()`."""
    if isinstance(bias, SumOfBiases):
        return {
            f"{index}/{name}": gradient
            for index, part in enumerate(bias.biases)
            for name, gradient in fold_shared_gradients(part, _of_part(index, gradients)).items()
        }
    return bias.fold_shared_gradients(gradients) if isinstance(bias, SharingBias) else gradients


def _of_part(index: int, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one of several biases, by its own names."""
    prefix = f"{index}/"
    return {name.removeprefix(prefix): x for name, x in named.items() if name.startswith(prefix)}
