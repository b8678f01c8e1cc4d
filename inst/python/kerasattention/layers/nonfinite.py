"""Projections of inputs whose masked-out tokens may be NaN or infinite.

In the gradient x^T dy of a kernel 0 * NaN is NaN, even where no query attends the token. So a
projection is given x with zeros in place of non-finite numbers, and its results for these tokens
are set to NaN afterwards: queries that attend them give NaN, and a gradient of zero stays zero.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from kerasattention.attend import finite
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span, Tensor
from kerasattention.layers.context import current_context


def choose_projector(
    inputs: tuple[Tensor, ...],
    mask: AttentionMask,
    bias: Tensor | None,
    queries: Any,
    keys: Any,
) -> "Projector":
    """The projector of a call's inputs, by its masks and numbers of queries and keys."""
    if not _may_mask_out(mask, bias, queries, keys):
        return Projector()
    if current_context().adds_one_token():
        # The token attends everything but padding, which must leave no NaN in a cache either.
        return Projector(True if mask.query_mask is None else None)
    return Projector.of(*inputs)


def _may_mask_out(mask: AttentionMask, bias: Tensor | None, queries: Any, keys: Any) -> bool:
    """Whether a token of the inputs may be masked out."""
    return (
        mask.masks_tokens
        or mask.query_mask is not None
        or bias is not None
        or mask.masks_positions(Span(0, queries), Span(0, keys))
    )


@dataclasses.dataclass(frozen=True)
class Projector:
    """Applies projections to the inputs of one call.

    Attributes:
        finite: Whether all inputs are finite, so that there is nothing to do; None while that is
            not known, a boolean tensor where a graph decides when it runs.
    """

    finite: Any = True

    @classmethod
    def of(cls, *inputs: Tensor) -> "Projector":
        """Checks whether the inputs are finite, where values may be read: one sum a tensor."""
        distinct = [x for i, x in enumerate(inputs) if not any(x is y for y in inputs[:i])]
        known = finite.known_to_be_finite(distinct)
        if known is None and finite.decides_at_run_time():
            known = ops.stop_gradient(finite.are_finite(distinct))
        return cls(known)

    def clean(self, x: Tensor) -> Tensor:
        """The input with zeros in place of non-finite numbers."""
        if self.finite is True:
            return x
        if self.finite is False or self.finite is None:
            return finite.clean(x)
        from kerasattention.attend.kernels.tensorflow.finite import clean_unless

        return clean_unless(self.finite, x)[0]

    def project(
        self,
        function: Callable[[Tensor], Any],
        x: Tensor,
        real: Callable[[], Tensor | None] = lambda: None,
        features: int = 1,
        features_are_split: bool = False,
    ) -> Any:
        """Applies a function of each token.

        Args:
            function: Maps (B, ..., features) to (B, ..., made), or to a tuple of such tensors.
            x: (B, ..., features).
            real: Gives None or booleans (B, ...); False marks padding, whose results are finite.
            features: The number of axes of x that are features.
            features_are_split: Whether several devices have parts of them.
        """
        if self.finite is True:
            return function(x)
        axes = tuple(range(-features, 0))
        rows = ops.logical_not(ops.isfinite(x))  # (B, ..., features)
        if features_are_split:
            # XLA adds the counts up over the devices together with the output, in one collective.
            rows = ops.sum(ops.cast(rows, x.dtype), axis=axes) > 0  # (B, ...)
        else:
            rows = ops.any(rows, axis=axes)  # (B, ...)
        mask = real()
        if mask is not None:
            rows = ops.logical_and(rows, mask)  # (B, ...)
        made = function(self.clean(x))
        if isinstance(made, tuple):
            return tuple(self._poison(part, rows) for part in made)
        return self._poison(made, rows)  # (B, ..., made)

    def _poison(self, output: Tensor, rows: Tensor) -> Tensor:
        made = len(output.shape) - len(rows.shape)
        rows = (
            ops.expand_dims(rows, tuple(range(-made + 1, 0))) if made > 1 else rows
        )  # (B, ..., 1)
        if self.finite is False or self.finite is None:
            return ops.cast(finite.poison(output, rows), output.dtype)  # (B, ..., made)
        from kerasattention.attend.kernels.tensorflow.finite import poison_unless

        return poison_unless(self.finite, output, rows)  # (B, ..., made)
