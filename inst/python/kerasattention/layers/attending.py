"""Attention of projected heads by the kernels, with the options of a layer."""

from typing import Any

import keras
from keras import ops

from kerasattention.attend.api import attend
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Tensor
from kerasattention.layers.inputs import as_boolean
from kerasattention.layers.projections import ProjectingLayer
from kerasattention.layers.recompute import seed_of_call


class AttendingLayer(ProjectingLayer):
    """A layer that attends with its projected heads."""

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
