"""Loads the projections of a published checkpoint into a layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasattention.attend.tensors import numpy_of, sizes_of
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.latent_attention import LatentAttention

Matrix = Any


def load_projections(
    layer: AttentionLayer,
    query: Matrix | Sequence[Matrix],
    key: Matrix | Sequence[Matrix] | None,
    value: Matrix | Sequence[Matrix] | None,
    output: Matrix | Sequence[Matrix],
    *,
    gate: Matrix | Sequence[Matrix] | None = None,
    query_norm: Matrix | Sequence[Matrix] | None = None,
    key_norm: Matrix | Sequence[Matrix] | None = None,
    sink: Matrix | None = None,
    scale: Matrix | None = None,
    undo_permutation: bool = False,
) -> AttentionLayer:
    """Sets a layer's weights from torch's matrices.

    Args:
        layer: A built attention layer.
        query: (N * H, D), as torch's `Linear` stores (out, in); or a pair of it and
            its bias (N * H). `key` (K * H, D), `value` (K * Hv, D) and `output`
            (D, N * Hv), with bias (D), likewise. `key` and `value` are None for a layer with
            `key_value_of`, `value` for one with `use_key_as_value`.
        gate: (N * Hv, D), for a layer with `use_gate`; (N, D) for one gate of each head.
        query_norm: The scale, for a layer with `qk_norm`: (H), or (N * H) or (N, H) where each
            head has one; or a pair of it and the bias. `key_norm` likewise.
        sink: (N), for a layer with `attention_sink`.
        scale: (H), for a layer with `scale="learned"`.
        undo_permutation: Whether rows of query and key are interleaved as in
            llama.cpp's GGUF files of Llama models, and the layer's rotary layout is
            "half".

    Returns:
        The layer.

    Raises:
        ValueError: The layer is not built, a shape does not fit, a weight is missing
            or has no place. The layer is then unchanged.
    """
    if not layer.built:
        raise ValueError(f"`layer` must be built before weights are loaded: {layer.name!r}")
    if isinstance(layer, LatentAttention):
        raise ValueError(
            f"Layer {layer.name!r} is a LatentAttention, which has other projections: its keys and "
            "values are projected from a latent. Set its weights with `set_weights()`."
        )
    heads = layer.heads
    given = {"query": query, "key": key, "value": value, "gate": gate}
    counts = {
        "query": (heads.query, heads.size),
        "key": (heads.key_value, heads.size),
        "value": (heads.key_value, heads.value_size),
        "gate": (heads.query, layer.gate_size),
    }
    for name in ("key", "value"):
        if given[name] is not None and layer.projection(name) is None:
            used = (
                "its keys as values (`use_key_as_value`)"
                if layer.use_key_as_value
                else f"the keys and values of layer {layer.key_value_of!r}"
            )
            raise ValueError(f"`{name}` must be `None`: layer {layer.name!r} uses {used}.")
    # Everything is checked before anything is assigned.
    assignments: list[tuple[Any, np.ndarray]] = []
    for name, dense in _projections(layer).items():
        if given[name] is None:
            raise ValueError(f"`{name}` is missing: the layer has such a projection.")
        permuted = undo_permutation and name in ("query", "key")
        assignments += _input_projection(name, dense, given[name], counts[name], permuted)
    if gate is not None and layer.projection("gate") is None:
        raise ValueError("`gate` was given, but the layer was made with `use_gate=False`.")
    assignments += _output_projection(layer, output)
    extras = {**_norm("query_norm", query_norm), **_norm("key_norm", key_norm)}
    extras |= {"sink": sink, "scale": scale}
    assignments += _vectors(layer.vectors(), extras)
    for variable, array in assignments:
        variable.assign(array)
    return layer


def _projections(layer: AttentionLayer) -> dict[str, Any]:
    dense = {name: layer.projection(name) for name in ("query", "key", "value", "gate")}
    return {name: x for name, x in dense.items() if x is not None}


def _input_projection(
    name: str, dense: Any, given: Any, counts: tuple[int, int], permuted: bool
) -> list[tuple[Any, np.ndarray]]:
    matrix, bias = _pair(given)
    features = dense.kernel.shape[0]
    rows = counts[0] * counts[1]
    _check(name, matrix, (rows, features), f"({counts[0]} heads * {counts[1]}, features)")
    if permuted:
        matrix = _unpermute(matrix, counts[0])
        bias = None if bias is None else _unpermute(bias, counts[0])
    result = [(dense.kernel, matrix.T.reshape(dense.kernel.shape))]
    return result + _bias(name, dense, bias, rows)


def _output_projection(layer: AttentionLayer, given: Any) -> list[tuple[Any, np.ndarray]]:
    dense = layer.projections()["output"]
    matrix, bias = _pair(given)
    kernel = sizes_of(dense.kernel)
    columns, features = kernel[0] * kernel[1], int(np.prod(kernel[2:]))
    expected = (features, columns)
    _check("output", matrix, expected, f"(features, {kernel[0]} heads * {kernel[1]})")
    result = [(dense.kernel, matrix.T.reshape(kernel))]
    return result + _bias("output", dense, bias, features)


def _bias(name: str, dense: Any, bias: Any, size: int) -> list[tuple[Any, np.ndarray]]:
    if dense.bias is None:
        if bias is None:
            return []
        raise ValueError(f"`{name}` has a bias, but the layer was made with `use_bias=False`.")
    if bias is None:
        raise ValueError(
            f"`{name}` has no bias, but the layer was made with `use_bias=True`: give a "
            "pair (matrix, bias), or make the layer without biases."
        )
    _check(f"{name} bias", bias, (size,), "one number per row")
    return [(dense.bias, bias.reshape(dense.bias.shape))]


def _vectors(
    variables: Mapping[str, Any], given: Mapping[str, Any]
) -> list[tuple[Any, np.ndarray]]:
    options = {"sink": "attention_sink", "scale": 'scale="learned"'}
    options |= dict.fromkeys(("query_norm", "key_norm"), "qk_norm")
    options |= dict.fromkeys(("query_norm_bias", "key_norm_bias"), "bias` of `qk_norm")
    result = []
    for name, array in given.items():
        if array is None and name in variables:
            raise ValueError(f"`{name}` is missing: the layer was made with `{options[name]}`.")
        if array is not None and name not in variables:
            raise ValueError(
                f"`{name}` was given, but the layer was made without `{options[name]}`."
            )
        if array is not None:
            array, shape = _array(array), tuple(variables[name].shape)
            if array.shape == (int(np.prod(shape)),):
                array = array.reshape(shape)  # of all heads, one after the other
            _check(name, array, shape, "the layer's own")
            result.append((variables[name], array))
    return result


def _norm(name: str, given: Any) -> dict[str, Any]:
    """The scale of a norm and its bias; either may be None."""
    is_pair = isinstance(given, (list, tuple)) and len(given) == 2 and np.ndim(given[0]) > 0
    scale, bias = given if is_pair else (given, None)
    return {name: scale, f"{name}_bias": bias}


def _pair(given: Any) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(given, (list, tuple)) and len(given) == 2 and np.ndim(given[0]) == 2:
        matrix, bias = given
        return _array(matrix), None if bias is None else _array(bias).reshape(-1)
    return _array(given), None


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):  # a torch tensor, perhaps bfloat16 or with a gradient
        x = x.detach().cpu().float()
    elif not isinstance(x, np.ndarray):
        x = numpy_of(x)
    array = np.asarray(x, dtype="float32")
    if np.isnan(array).any():
        raise ValueError("A matrix of the checkpoint holds NaN.")
    return array


def _check(name: str, array: np.ndarray, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(array.shape) != expected:
        is_transposed = tuple(array.shape) == expected[::-1]
        hint = " It looks transposed: torch stores (out, in)." if is_transposed else ""
        raise ValueError(
            f"`{name}` must have shape {expected}, {meaning}. "
            f"Received: shape {tuple(array.shape)}.{hint}"
        )


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows pair by pair, (heads, H / 2, 2), back to halves, (heads, 2, H / 2)."""
    grouped = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return grouped.swapaxes(1, 2).reshape(rows.shape)
