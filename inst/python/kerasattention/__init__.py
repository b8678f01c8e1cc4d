"""Attention layers for Keras 3: correct, linear in memory, the same on every backend."""

# In this order: the first two run before Keras is loaded.
from kerasattention import _backend, _messages, _bridge  # noqa: F401, I001
from kerasattention._keras import override_int8_products as _override_int8_products
from kerasattention.attend import scaled_dot_product_attention
from kerasattention.decoding import IncrementalDecoder, generate
from kerasattention.distribution.check import check_sharding
from kerasattention.distribution.head_parallel import HeadParallel
from kerasattention.distribution.layout_map import attention_layout_map, layout_set
from kerasattention.distribution.padding import predict_padded
from kerasattention.distribution.processes import attention_cluster, local_rows, save_gathered
from kerasattention.distribution.report import ShardingReport, sharding_report
from kerasattention.distribution.scope import with_distribution
from kerasattention.distribution.several_workers_tensorflow import guard_fit as _guard_fit
from kerasattention.layers import GroupQueryAttention, MultiHeadAttention
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.context import is_observed as _is_observed
from kerasattention.layers.group_query_attention import GroupedQueryAttention
from kerasattention.layers.latent_attention import LatentAttention
from kerasattention.layers.scaling import ScaleByPosition
from kerasattention.masks.base import AndMask, Mask, NotMask, OrMask
from kerasattention.masks.kinds import (
    BlockMask,
    CausalMask,
    ChunkMask,
    DilatedMask,
    MaskFunction,
    PrefixMask,
    WindowMask,
)
from kerasattention.models.checkpoint import load_projections
from kerasattention.models.convert import convert_attention
from kerasattention.models.importance import head_importance
from kerasattention.models.interrupts_jax import keep_variables as _keep_variables
from kerasattention.models.lora import enable_lora
from kerasattention.models.packing import PackedSequences, pack_sequences
from kerasattention.models.prune import least_important, prune_heads
from kerasattention.models.rollout import attention_rollout
from kerasattention.models.scores import AttentionMap, attention_scores
from kerasattention.positions.alibi import AlibiPosition
from kerasattention.positions.relative import RelativePosition
from kerasattention.positions.relative_keys import RelativeKeysPosition
from kerasattention.positions.rotary import RotaryPosition

__version__ = "0.0.0.9000"

__all__ = [
    "AlibiPosition",
    "AttentionMap",
    "BlockMask",
    "CausalMask",
    "ChunkMask",
    "DilatedMask",
    "GroupQueryAttention",
    "HeadParallel",
    "IncrementalDecoder",
    "LatentAttention",
    "MaskFunction",
    "MultiHeadAttention",
    "PackedSequences",
    "PrefixMask",
    "RelativeKeysPosition",
    "RelativePosition",
    "RotaryPosition",
    "ScaleByPosition",
    "ShardingReport",
    "WindowMask",
    "attention_cluster",
    "attention_layout_map",
    "attention_rollout",
    "attention_scores",
    "check_sharding",
    "convert_attention",
    "enable_lora",
    "generate",
    "head_importance",
    "layout_set",
    "least_important",
    "load_projections",
    "local_rows",
    "pack_sequences",
    "predict_padded",
    "prune_heads",
    "save_gathered",
    "scaled_dot_product_attention",
    "sharding_report",
    "with_distribution",
]

# The names that messages, pickles and R's class strings show, whatever the module of a class.
# Keras's files are not concerned: they find a class by its registered name.
_CLASSES = (AttentionLayer, GroupedQueryAttention, Mask, AndMask, OrMask, NotMask)
for _public in [*(globals()[_name] for _name in __all__), *_CLASSES]:
    if isinstance(_public, type):
        _public.__module__ = __name__
del _public

_override_int8_products(unless=_is_observed)
_keep_variables()
_guard_fit()
