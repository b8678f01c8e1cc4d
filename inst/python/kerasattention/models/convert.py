"""Replaces a model's attention layers with ours, and merges key/value heads."""

from typing import Any

import keras
import numpy as np

from kerasattention import checks
from kerasattention._keras import flatten_layers
from kerasattention.layers import GroupQueryAttention, MultiHeadAttention
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.latent_attention import LatentAttention
from kerasattention.models.replace import replace_layers

KERAS_LAYERS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
METHODS = ("mean", "first", "random")


def convert_attention(
    model: keras.Model,
    num_key_value_heads: int | None = None,
    method: str = "mean",
    seed: int | None = None,
) -> keras.Model:
    """A copy of a model with our attention layers in the place of Keras's.

    With `num_key_value_heads` the key and value heads are merged to fewer, the
    first step of uptraining multi-head to grouped-query attention (Ainslie et al.
    2023, https://arxiv.org/abs/2305.13245).

    Args:
        model: A Functional or Sequential model, nested ones and those in
            `TimeDistributed` included, with Keras's attention layers or ours. It is
            left as it is.
        num_key_value_heads: None to keep the heads, or K' that divides the key/value
            heads of every attention layer.
        method: "mean" pools the heads of a group, "first" takes its first one,
            "random" draws new ones.
        seed: Integer seed for "random".

    Returns:
        The copy, with all other weights kept, compiled as `model` was. Frozen and
        quantised layers stay so, and LoRA's factors are kept.

    Raises:
        ValueError: A model that cannot be copied, an attention layer where it cannot
            be exchanged (inside of a layer with code of its own), heads that do not
            divide.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}. Received: {method!r}")
    random = np.random.default_rng(seed)

    wanted = KERAS_LAYERS if num_key_value_heads is None else (*KERAS_LAYERS, AttentionLayer)

    def exchange(layer: keras.layers.Layer) -> tuple[AttentionLayer, list[Any] | None]:
        _check_kind(layer)
        if num_key_value_heads is None:
            return _KINDS[type(layer)].from_config(layer.get_config()), None
        return _merged(layer, num_key_value_heads, method, random)

    return replace_layers(model, lambda layer: isinstance(layer, wanted), exchange)


# Config and order of weights are the same.
_KINDS = {
    keras.layers.MultiHeadAttention: MultiHeadAttention,
    keras.layers.GroupQueryAttention: GroupQueryAttention,
}


def _check_kind(layer: keras.layers.Layer) -> None:
    """Refuses a subclass, whose own code would be lost, and latent attention."""
    if isinstance(layer, LatentAttention):
        raise ValueError(
            f"Layer {layer.name!r} is a LatentAttention: the keys and values of all its heads come "
            "from one latent, so there are no key/value heads to merge."
        )
    if type(layer) not in (*_KINDS, *_KINDS.values()):
        raise ValueError(
            f"Layer {layer.name!r} is a {type(layer).__name__}, a class derived from an attention "
            "layer: its own code would be lost. Derive it from kerasattention's class, with the "
            "heads that you want, and make the model with that."
        )


def _merged(
    layer: Any, kv_heads: int, method: str, random: np.random.Generator
) -> tuple[AttentionLayer, list[Any]]:
    if isinstance(layer, AttentionLayer) and (layer.key_value_of or layer.shares_key_value):
        raise ValueError(
            f"The key/value heads of layer {layer.name!r} cannot be merged: another layer uses "
            "the same keys and values (`key_value_of`)."
        )
    config, old_heads = _grouped_config(layer)
    checks.optional_positive_integer("num_key_value_heads", kv_heads)
    if old_heads % kv_heads:
        divisors = ", ".join(str(number) for number in checks.divisors(old_heads))
        raise ValueError(
            f"`num_key_value_heads` must divide the {old_heads} key/value heads of layer "
            f"{layer.name!r}: one of {divisors}. Received: {kv_heads}"
        )
    _check_plain(layer)
    config["num_key_value_heads"] = kv_heads
    arrays = [
        _merge(variable, array, kv_heads, method, random)
        for variable, array in zip(layer.weights, layer.get_weights(), strict=True)
    ]
    return GroupQueryAttention.from_config(config), arrays


def _check_plain(layer: Any) -> None:
    """Refuses quantised kernels, whose means would need other scales, and LoRA's factors."""
    for dense in flatten_layers(layer, include_self=False):
        mode = getattr(dense, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                f"The key/value heads of layer {layer.name!r} cannot be merged: it is quantised "
                f"({mode}). Merge the heads before `quantize()`, of the model with its full "
                "weights."
            )
        if getattr(dense, "lora_enabled", False):
            raise ValueError(
                f"The key/value heads of layer {layer.name!r} cannot be merged: it has LoRA's "
                "factors. Merge the heads before LoRA is enabled, or save the model and load it: "
                "the factors are then in the kernels."
            )


def _grouped_config(layer: Any) -> tuple[dict[str, Any], int]:
    """The config of a grouped-query layer of the same heads, and how many keys have."""
    config = layer.get_config()
    if not isinstance(layer, (MultiHeadAttention, keras.layers.MultiHeadAttention)):
        return config, config["num_key_value_heads"]
    heads, size = config.pop("num_heads"), config.pop("key_dim")
    options = {
        "value_dim": (None, size),
        "output_shape": (None,),
        "attention_axes": (None, (1,), [1]),
    }
    for name, allowed in options.items():
        value = config.pop(name)
        if value not in allowed:
            raise ValueError(
                "Grouped-query attention has one head size and attends the second axis. "
                f"Layer {layer.name!r} has {name}={value!r}."
            )
    config |= {"head_dim": size, "num_query_heads": heads, "num_key_value_heads": heads}
    return config, heads


def _merge(
    variable: Any, array: np.ndarray, kv_heads: int, method: str, random: np.random.Generator
) -> np.ndarray:
    """Kernels (D, K, H) and biases (K, H) of key and value; all else as it is.

    So are scales and biases (K, H) of a norm of the keys.
    """
    owner, kind = variable.path.split("/")[-2:]
    of_norm = owner == "key_norm" and array.ndim == 2
    if not of_norm and (owner not in ("key", "value") or kind not in ("kernel", "bias")):
        return array
    *features, old_heads, size = array.shape
    grouped = array.reshape(*features, kv_heads, old_heads // kv_heads, size)
    if method == "mean" or (of_norm and method == "random"):
        return grouped.mean(axis=-2)
    if method == "first":
        return grouped[..., 0, :]
    if kind == "bias":
        return np.zeros((*features, kv_heads, size), array.dtype)
    # As Glorot and Bengio 2010 for one head, whatever the number of heads.
    limit = np.sqrt(6.0 / (features[0] + size))
    return random.uniform(-limit, limit, (*features, kv_heads, size)).astype(array.dtype)
