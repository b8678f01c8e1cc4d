"""Attention of projected heads by the kernels, with the options of a layer.

Shape letters: B batch, T query length, S key/value length, N query heads, K key/value heads, H
head size.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import keras
from keras import ops

from kerasattention.attend.api import attend
from kerasattention.attend.bias import BlockBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.sharing import ring_in_force
from kerasattention.attend.tensors import Span, Tensor
from kerasattention.layers.inputs import as_boolean
from kerasattention.layers.nonfinite import Projector
from kerasattention.layers.norms import normalize
from kerasattention.layers.projections import ProjectingLayer
from kerasattention.layers.recompute import seed_of_call
from kerasattention.layers.scaling import LEARNED, multiply, per_dimension_factor
from kerasattention.layers.sharding import head_axes


class CachedSizes(NamedTuple):
    """Sizes of what a cache holds of a token.

    Attributes:
        heads: K, the number of key/value heads.
        key: H.
        value: Hv; None where the values are the keys, which are cached once.
    """

    heads: int
    key: int
    value: int | None


class AttendingLayer(ProjectingLayer):
    """A layer that attends with its projected heads."""

    def share_key_value(self, user: "AttendingLayer") -> None:
        """Lets the outputs of this layer carry its keys and values, for a layer that uses them.

        Raises:
            ValueError: The other layer needs other heads.
        """
        sizes = [dataclasses.astuple(layer.heads)[1:] for layer in (user, self)]  # K, H, Hv
        if sizes[0] != sizes[1]:
            texts = [f"{count} heads of size {key} and {value}" for count, key, value in sizes]
            raise ValueError(
                f"Layer {user.name!r} cannot use the keys and values of layer {self.name!r}: both "
                f"need the same key/value heads. Received: {texts[0]}, and {texts[1]}"
            )
        self.shares_key_value = True

    @property
    def cached_sizes(self) -> CachedSizes:
        """What a cache holds of a token."""
        heads = self.heads
        return CachedSizes(heads.key_value, heads.size, heads.value_size)

    @property
    def _positioned_size(self) -> int:
        """The features of a head that the position is given."""
        return self.heads.size

    def _positioned(
        self,
        query: Tensor,
        key: Tensor,
        mask: AttentionMask,
        self_attention: bool,
        coordinates: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Queries and the keys projected in this call, with their positions applied.

        `coordinates` are positions (B|1, T, axes) of both, or None.
        """
        if self.position is None:
            return query, key
        queries = coordinates  # (B|1, T, axes)
        if coordinates is None:
            queries = mask.positions_of_queries(Span(0, ops.shape(query)[1]))  # (T) or (B, T)
        if self.key_value_of is not None:  # the keys have theirs
            query, _ = self.position.rotate(query, query[:, :, :1], queries, queries)
            return query, key  # (B, T, N, H), (B, S, K, H)
        is_same = self_attention or coordinates is not None
        keys = (
            queries if is_same else mask.positions_of_keys(Span(0, ops.shape(key)[1]))
        )  # (S) or (B, S)
        return self.position.rotate(query, key, queries, keys)  # (B, T, N, H), (B, S, K, H)

    def _norm_positioned(
        self, query: Tensor, key: Tensor, projector: Projector
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys whose position was applied, normalised where that comes after it."""
        options = self.norm_options
        if options is None or not options.after_position:
            return query, key
        # Heads are looked at together only where they are normalised together: devices share them.
        features = 2 if options.over == "width" else 1

        def normalized(norm: Any, heads: Tensor) -> Tensor:
            return projector.project(functools.partial(normalize, norm), heads, features=features)

        query = normalized(self._query_norm, query)  # (B, T, N, H)
        if self.key_value_of is not None:
            return query, key  # (B, T, N, H), (B, S, K, H)
        return query, normalized(self._key_norm, key)  # (B, T, N, H), (B, S, K, H)

    def _scaled(self, query: Tensor, mask: AttentionMask, projector: Projector) -> Tensor:
        """Queries (B, T, N, H) times the layer's factors but for the scale of the logits."""
        if self.scale == LEARNED:
            learned = per_dimension_factor(self.per_dim_scale, query.dtype)  # (H)
            query = projector.project(lambda x: multiply(x, learned), query)  # (B, T, N, H)
        if self.query_scale is not None:
            positions = mask.positions_of_queries(Span(0, ops.shape(query)[1]))  # (T) or (B, T)
            factors = self.query_scale.factors(positions, query.dtype)  # (T) or (B, T)
            query = multiply(query, factors[..., None, None])  # (B, T, N, H)
        return query

    @property
    def _logit_scale(self) -> float | None:
        """The factor of the logits; None for one over the root of the head size."""
        return self.scale if isinstance(self.scale, float) else None

    def _key_bias(self, query: Tensor, key: Tensor, mask: AttentionMask) -> BlockBias | None:
        """The bias of the layer's position that depends on queries and keys."""
        if self.position is None:
            return None
        scale = self._logit_scale
        scale = 1.0 / math.sqrt(self.heads.size) if scale is None else scale
        return self.position.key_bias(query, key, mask, scale)

    @property
    def uses_positions(self) -> bool:
        """Whether queries or keys depend on positions, beside the mask."""
        return self.position is not None or self.query_scale is not None

    def _run_kernel(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: AttentionMask,
        training: bool | None,
        return_scores: bool,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Heads (B', T, N, Hv), and their weights (B', N, T, S) where asked for."""
        rate = self.dropout if training else 0.0
        flash = self._flash()
        result = attend(
            query,
            key,
            value,
            mask,
            **options,
            rate=rate,
            seed=self._dropout_seed() if rate > 0.0 else None,
            return_scores=return_scores,
            implementation="plain" if flash is False else None,
            never_hold_scores=flash is True,
            head_axes=head_axes(self),
            ring=ring_in_force(),
        )
        return result if return_scores else (result, None)

    def _dropout_seed(self) -> Any:
        drawn = seed_of_call()
        return self._dropout_layer.seed_generator if drawn is None else drawn

    def _flash(self) -> bool | None:
        """The layer's own value, or else Keras's global switch, which can only forbid."""
        if self.flash_attention is not None:
            return self.flash_attention
        return False if keras.config.is_flash_attention_enabled() is False else None

    def _compute_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of projected heads, which subclasses may override as in Keras.

        An override gets one mask with everything in it. A layer without an override does
        not call this method, since the kernels do not need that mask.
        """
        query, key, value = map(ops.convert_to_tensor, (query, key, value))
        given = self._fold.fold_scores(
            as_boolean(attention_mask), query, key
        )  # (B'|1, N|1, T|1, S|1)
        mask = AttentionMask(causal=use_causal_mask, mask=given)
        return self._run_kernel(query, key, value, mask, training, return_attention_scores, {})
