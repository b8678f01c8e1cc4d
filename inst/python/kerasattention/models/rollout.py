"""Attention rollout (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928)."""

from collections.abc import Sequence

import numpy as np

from kerasattention.models.scores import AttentionMap


def attention_rollout(scores: Sequence[AttentionMap | np.ndarray]) -> np.ndarray:
    """The contribution of each input token to each position, after every layer.

    The mean over heads plus the residual connection's identity, each half, is a
    layer's flow; the rollout is the product of the flows up to a layer.

    Args:
        scores: Maps (B, N, T, T) of self-attention layers in order, all rows.

    Returns:
        (L, B, T, T): row t of layer l sums to 1 over the input tokens.

    Raises:
        ValueError: Maps that are not square or differ in size.
    """
    arrays = [score.weights if isinstance(score, AttentionMap) else score for score in scores]
    if not arrays:
        raise ValueError("`scores` must hold the map of at least one layer.")
    for array in arrays:
        if (
            array.ndim != 4
            or array.shape[2] != array.shape[3]
            or array.shape != arrays[0].shape[:1] + array.shape[1:2] + arrays[0].shape[2:]
        ):
            raise ValueError(
                "`scores` must be maps (B, N, T, T) of self-attention, one size in all "
                f"layers and all rows. Received: {[a.shape for a in arrays]}"
            )
    flow = np.eye(arrays[0].shape[-1])[None]
    rollouts = []
    for array in arrays:
        flow = _with_residual(array.mean(axis=1, dtype="float64")) @ flow
        rollouts.append(flow)
    return np.stack(rollouts)


def _with_residual(weights: np.ndarray) -> np.ndarray:
    """0.5 A + 0.5 I with rows that sum to 1, also where a row of A does not."""
    mixed = 0.5 * weights + 0.5 * np.eye(weights.shape[-1])
    return mixed / mixed.sum(axis=-1, keepdims=True)
