"""Contexts that take part in the attention layers of an unchanged model.

Every attention layer calls the active context: a decoder's keeps the KV cache, others
collect attention maps or scale heads. The layers know this interface only, and a context
knows no private name of a layer.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kerasattention import checks
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.prepare import make_inputs
from kerasattention.attend.tensors import Span, Tensor
from kerasattention.attend.weights import attention_weights

if TYPE_CHECKING:
    from kerasattention.layers.attention import AttentionLayer


class AttentionContext:
    """Does nothing; subclasses override methods.

    But for `adds_one_token()`, `extends_cache()` and `pads_tokens()` the methods are called in this
    order within a layer's call, each tensor with attention axes folded: (B, T, N, H) queries,
    (B, S, K, H) keys.
    """

    def adds_one_token(self) -> bool:
        """Whether the call is a step of decoding, in which a layer reads no tensor values."""
        return False

    def extends_cache(self) -> bool:
        """Whether `update_cache()` returns keys of earlier tokens too."""
        return False

    def pads_tokens(self) -> bool:
        """Whether calls may have more tokens than the caller gave."""
        return False

    def project(
        self,
        layer: "AttentionLayer",
        self_attention: bool,
        compute: Callable[[], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Projected keys and values; `compute` makes them from the layer's inputs."""
        return compute()

    def set_positions(
        self, layer: "AttentionLayer", mask: AttentionMask, self_attention: bool
    ) -> AttentionMask:
        """Sets positions of queries (in self-attention, of keys too) before they are applied."""
        return mask

    def update_cache(
        self,
        layer: "AttentionLayer",
        key: Tensor,
        value: Tensor,
        mask: AttentionMask,
        self_attention: bool,
    ) -> tuple[Tensor, Tensor, AttentionMask]:
        """Stores new keys and values, positions applied; returns all that queries may attend."""
        return key, value, mask

    def observe(self, layer: "AttentionLayer", weights: Callable[[Span | None], Tensor]) -> None:
        """Reads weights: `weights(rows)` computes the (B, N, t, S) weights of query rows."""

    def scale_heads(self, layer: "AttentionLayer", heads: Tensor) -> Tensor:
        """Changes the (B, T, N, Hv) results of the heads before the output projection."""
        return heads


_NO_CONTEXT = AttentionContext()
_active: contextvars.ContextVar[AttentionContext] = contextvars.ContextVar(
    "kerasattention_context", default=_NO_CONTEXT
)


def current_context() -> AttentionContext:
    return _active.get()


def is_observed() -> bool:
    """Whether a context is active."""
    return current_context() is not _NO_CONTEXT


@contextlib.contextmanager
def attention_context(context: AttentionContext) -> Iterator[AttentionContext]:
    """Makes all attention layers called inside report to `context`."""
    token = _active.set(context)
    try:
        yield context
    finally:
        _active.reset(token)


def lazy_weights(
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    options: dict[str, Any],
) -> Callable[[Span | None], Tensor]:
    """Computes the (B, N, t, S) weights of query rows, where a context asks for them."""

    def weights(rows: Span | None = None) -> Tensor:
        checks.rows(rows, query.shape[1], name)
        return attention_weights(
            make_inputs(query, key, value, mask, **options), rows
        )  # (B, N, t, S)

    return weights
