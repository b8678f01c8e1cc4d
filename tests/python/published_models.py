"""Published models: the arguments of our layer, and their attention in `transformers`.

The settings are those of the models' configs; `inst/examples/published-models.R` has the
same in R. For a comparison the layers are made small, all else stays as published.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable

import numpy as np

from kerasattention import (
    AlibiPosition,
    GroupQueryAttention,
    LatentAttention,
    MultiHeadAttention,
    RelativePosition,
    RotaryPosition,
)

# Some configs demand that N divides D.
D, H, N, K, T = 18, 8, 6, 2, 13
WINDOW = 5
# Of latent attention; DeepSeek-V2 views C + R numbers as pairs.
RANK, QUERY_RANK, ROTATED, VALUE = 10, 11, 4, 5


@dataclasses.dataclass(frozen=True)
class Model:
    """A kind of layer, its arguments as published, and the twin of a small one.

    `twin` takes the small layer, what each query sees (T, T) and positions (1, T) or
    (1, T, axes); it gives a function of the input, the weights by the names of ours, and the
    module. `position` makes the position of the small layer, where it has the sizes of heads.
    """

    layer: type
    options: Callable[[], dict]
    twin: Callable
    causal: bool = True
    square: bool = False  # whether their projections demand D = N * H
    position: Callable | None = None
    places: Callable | None = None
    length: int = T

    def full(self):
        """The layer in its published size, not built."""
        return self.layer(**self.options(), **self._causal())

    def small(self):
        options = self.options()
        if self.layer is GroupQueryAttention:
            sizes = {"head_dim": H, "num_query_heads": N, "num_key_value_heads": K}
            sizes["num_key_value_heads"] = (
                N if options["num_query_heads"] == options["num_key_value_heads"] else K
            )
        elif self.layer is LatentAttention:
            sizes = {"num_heads": N, "head_dim": H, "kv_rank": RANK}
            sizes |= {"rotary_dim": ROTATED, "value_dim": VALUE}
            sizes |= {"query_rank": QUERY_RANK} if "query_rank" in options else {}
        else:
            sizes = {"num_heads": self.heads, "key_dim": H}
        if "sliding_window" in options:
            sizes["sliding_window"] = WINDOW
        if self.position is not None:
            sizes["position"] = self.position()
        return self.layer(**options | sizes, **self._causal())

    @property
    def heads(self):
        # MPT orders the slopes of other numbers than powers of two in its own way.
        return 4 if isinstance(self.options().get("position"), AlibiPosition) else N

    def _causal(self):
        return {"use_causal_mask": True} if self.causal else {}


def rope(position):
    """A rotary position as the configs of `transformers` write it."""
    scaling = dict(position.scaling or {"type": "default"})
    return {
        "rope_theta": position.theta,
        "rope_type": scaling.pop("type"),
        "partial_rotary_factor": position.fraction,
        **scaling,
    }


# How `transformers` is asked --------------------------------------------------------------


def llama_like(family, config_name, attention, embedding, **more):
    """Models that are made of one projection each, rotary positions and an eager attention."""

    def twin(layer, seen, positions):
        import torch

        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        config = getattr(
            importlib.import_module(f"transformers.models.{family}.configuration_{family}"),
            config_name,
        )
        rotary = layer.position
        per_layer = more.get("rope_per_layer")
        described = rope(rotary)
        options = {
            "hidden_size": D,
            "head_dim": H,
            "num_attention_heads": layer.num_query_heads,
            "num_key_value_heads": layer.num_key_value_heads,
            "num_hidden_layers": 1,
            "attention_bias": layer.use_bias,
            "rope_parameters": {per_layer: described} if per_layer else described,
            "sliding_window": layer.sliding_window,
            "layer_types": ["sliding_attention" if layer.sliding_window else "full_attention"],
            **more.get("config", {}),
        }
        if family in ("llama", "olmo2", "cohere"):
            del options["sliding_window"], options["layer_types"]
        config = config(**options)
        config._attn_implementation = "eager"
        made = getattr(module, attention)(config, 0)
        randomize(made)
        angles = getattr(module, embedding)(config)

        def run(x):
            extra = (per_layer,) if per_layer else ()
            embedded = angles(x, torch.as_tensor(positions), *extra)
            return made(x, embedded, additive(seen))[0]

        return run, dict(projections(made, layer)), made

    return twin


def projections(made, layer):
    heads = layer.heads
    for name, theirs, count in (
        ("query", made.q_proj, heads.query),
        ("key", made.k_proj, heads.key_value),
        ("value", made.v_proj, heads.key_value),
    ):
        yield from split(name, theirs.weight, theirs.bias, count)
    output = made.o_proj if hasattr(made, "o_proj") else made.out_proj
    yield from joined(output.weight, output.bias, heads.query)
    # Gemma's norms multiply by 1 + weight.
    shift = 1.0 if "Gemma" in type(made).__name__ else 0.0
    if hasattr(made, "q_norm"):
        norms = (("query", made.q_norm, heads.query), ("key", made.k_norm, heads.key_value))
        for name, theirs, count in norms:
            weight = as_numpy(theirs.weight) + shift
            # OLMo 2 has one vector for all heads.
            of_all = weight.ndim == 1 and len(weight) > heads.size
            yield f"{name}_norm/scale", weight.reshape(count, -1) if of_all else weight
    if hasattr(made, "sinks"):
        yield "sink", as_numpy(made.sinks)


def gpt_j(layer, seen, positions):
    import torch
    from transformers.models.gptj.configuration_gptj import GPTJConfig
    from transformers.models.gptj.modeling_gptj import GPTJAttention

    config = GPTJConfig(
        n_embd=N * H,
        n_head=N,
        n_layer=1,
        rotary_dim=layer.position.rotated_size(H),
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    made = GPTJAttention(config, 0)
    randomize(made)

    def run(x):
        ids = torch.as_tensor(positions)
        return made(x, attention_mask=additive(seen), position_ids=ids)[0]

    return run, dict(projections(made, layer)), made


def gpt_neox(layer, seen, positions):
    import torch
    from transformers.models.gpt_neox import modeling_gpt_neox as theirs
    from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig

    config = GPTNeoXConfig(
        hidden_size=N * H,
        num_attention_heads=N,
        num_hidden_layers=1,
        rope_parameters=rope(layer.position),
        attention_dropout=0.0,
    )
    config._attn_implementation = "eager"
    made = theirs.GPTNeoXAttention(config, 0)
    randomize(made)
    angles = theirs.GPTNeoXRotaryEmbedding(config)

    def run(x):
        embedded = angles(x, torch.as_tensor(positions))
        return made(x, additive(seen), position_embeddings=embedded)[0]

    # Query, key and value of a head stand together.
    weight = made.query_key_value.weight.reshape(N, 3, H, N * H)
    bias = made.query_key_value.bias.reshape(N, 3, H)
    weights = {}
    for i, name in enumerate(("query", "key", "value")):
        kernel = weight[:, i].reshape(N * H, N * H)
        weights |= dict(split(name, kernel, bias[:, i].reshape(-1), N))
    weights |= dict(joined(made.dense.weight, made.dense.bias, N))
    return run, weights, made


def mpt(layer, seen, positions):
    import torch
    from transformers.models.mpt import modeling_mpt as theirs
    from transformers.models.mpt.configuration_mpt import MptConfig

    heads = layer.num_heads
    config = MptConfig(d_model=heads * H, n_heads=heads, n_layers=1, max_seq_len=T)
    made = theirs.MptAttention(config, 0)
    randomize(made)

    def run(x):
        bias = theirs.build_mpt_alibi_tensor(heads, T)
        return made(x, bias, attention_mask=~torch.as_tensor(seen)[None, None])[0]

    weights = {}
    for name, weight in zip(
        ("query", "key", "value"), made.Wqkv.weight.chunk(3, dim=0), strict=True
    ):
        weights |= dict(split(name, weight, None, heads))
    weights |= dict(joined(made.out_proj.weight, None, heads))
    return run, weights, made


def t5(layer, seen, positions):
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(
        d_model=D,
        d_kv=H,
        num_heads=N,
        dropout_rate=0.0,
        is_decoder=layer.use_causal_mask,
        relative_attention_num_buckets=layer.position.num_buckets,
        relative_attention_max_distance=layer.position.max_distance,
    )
    config._attn_implementation = "eager"
    made = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    randomize(made)

    def run(x):
        return made(x, mask=additive(seen))[0]

    weights = {}
    for name in ("query", "key", "value"):
        weights |= dict(split(name, getattr(made, name[0]).weight, None, N))
    # T5 does not scale its logits.
    weights["query/kernel"] = weights["query/kernel"] * np.sqrt(H)
    weights |= dict(joined(made.o.weight, None, N))
    weights["table"] = as_numpy(made.relative_attention_bias.weight)
    return run, weights, made


def deepseek(version):
    """The modules of DeepSeek-V2 and V3, whose `transformers` classes differ in names only."""

    def twin(layer, seen, positions):
        import torch

        family, name = f"deepseek_v{version}", f"DeepseekV{version}"
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        configs = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
        config = getattr(configs, f"{name}Config")(
            hidden_size=D,
            num_attention_heads=N,
            num_key_value_heads=N,
            num_hidden_layers=1,
            kv_lora_rank=layer.kv_rank,
            q_lora_rank=layer.query_rank,
            qk_nope_head_dim=layer.head_dim,
            qk_rope_head_dim=layer.rotary_dim,
            v_head_dim=layer.value_dim,
            max_position_embeddings=40 * 4096,
            attention_bias=layer.use_bias,
            rope_parameters=rope(layer.position),
        )
        config._attn_implementation = "eager"
        made = getattr(module, f"{name}Attention")(config, 0)
        randomize(made)
        angles = getattr(module, f"{name}RotaryEmbedding")(config)

        def run(x):
            embedded = angles(x, torch.as_tensor(positions))
            given = {"position_embeddings": embedded, "attention_mask": additive(seen)}
            return made(x, **given)[0]

        return run, dict(latent_projections(made, layer)), made

    return twin


def latent_projections(made, layer):
    if layer.query_rank is None:
        yield from split("/query", made.q_proj.weight, None, N)
    else:
        yield "/query_latent/kernel", as_numpy(made.q_a_proj.weight).T
        yield "/query_latent_norm/scale", as_numpy(made.q_a_layernorm.weight)
        yield from split("/query", made.q_b_proj.weight, None, N)
    yield "/latent/kernel", as_numpy(made.kv_a_proj_with_mqa.weight).T
    yield "/latent_norm/scale", as_numpy(made.kv_a_layernorm.weight)
    (_, both), *_ = split("", made.kv_b_proj.weight, None, N)  # keys and values of a head
    yield "/key/kernel", both[:, :, : layer.head_dim]
    yield "/value/kernel", both[:, :, layer.head_dim :]
    yield from joined(made.o_proj.weight, None, N)


def qwen_vl(family, layer, seen, positions):
    """Qwen2-VL and Qwen3-VL: positions of three axes."""
    import torch

    theirs = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    settings = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    prefix = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"}[family]
    described = {**rope(layer.position), "mrope_section": list(layer.position.sections.sizes)}
    config = getattr(settings, f"{prefix}TextConfig")(
        hidden_size=N * H,
        head_dim=H,
        num_attention_heads=N,
        num_key_value_heads=K,
        num_hidden_layers=1,
        rope_parameters=described,
    )
    config._attn_implementation = "eager"
    name = "Attention" if family == "qwen2_vl" else "TextAttention"
    made = getattr(theirs, prefix + name)(config, 0)
    randomize(made)
    angles = getattr(
        theirs,
        f"{prefix}RotaryEmbedding" if family == "qwen2_vl" else f"{prefix}TextRotaryEmbedding",
    )(config)

    def run(x):
        embedded = angles(x, torch.as_tensor(positions).movedim(-1, 0))
        return made(x, position_embeddings=embedded, attention_mask=additive(seen))[0]

    weights = dict(projections(made, layer))
    if layer.use_bias:  # their output has none
        weights["attention_output/bias"] = np.zeros(N * H, "float32")
    return run, weights, made


def modernbert(layer, seen, positions):
    import torch
    from transformers.models.modernbert import modeling_modernbert as theirs
    from transformers.models.modernbert.configuration_modernbert import ModernBertConfig

    kind = "sliding_attention" if layer.sliding_window else "full_attention"
    config = ModernBertConfig(
        hidden_size=N * H,
        num_attention_heads=N,
        num_hidden_layers=1,
        layer_types=[kind],
        local_attention=2 * (WINDOW - 1),
        rope_parameters={kind: rope(layer.position)},
    )
    config._attn_implementation = "eager"
    made = theirs.ModernBertAttention(config, 0)
    randomize(made)
    if layer.sliding_window:  # of their own, both sides, the query's position not counted
        assert made.sliding_window == layer.sliding_window
    angles = theirs.ModernBertRotaryEmbedding(config)

    def run(x):
        embedded = angles(x, torch.as_tensor(positions), kind)
        return made(x, embedded, additive(seen))[0]

    weights = {}
    for name, weight in zip(
        ("query", "key", "value"), made.Wqkv.weight.chunk(3, dim=0), strict=True
    ):
        weights |= dict(split(name, weight, None, N))
    weights |= dict(joined(made.Wo.weight, None, N))
    return run, weights, made


def swin(layer, seen, positions):
    from transformers.models.swin.configuration_swin import SwinConfig
    from transformers.models.swin.modeling_swin import SwinAttention

    config = SwinConfig(attention_probs_dropout_prob=0.0)
    config._attn_implementation = "eager"
    made = SwinAttention(config, N * H, N, layer.position.max_distance[0] + 1)
    randomize(made)

    def run(x):
        return made(x)[0]

    weights = dict(projections(made, layer))
    weights["table"] = as_numpy(made.relative_position_bias.relative_position_bias_table)
    return run, weights, made


# Their weights in our shapes ----------------------------------------------------------------


def split(name, weight, bias, heads):
    """(heads * size, D) to our (D, heads, size)."""
    weight = as_numpy(weight)
    yield f"{name}/kernel", weight.T.reshape(weight.shape[1], heads, -1)
    if bias is not None:
        yield f"{name}/bias", as_numpy(bias).reshape(heads, -1)


def joined(weight, bias, heads):
    """(D, heads * size) to our (heads, size, D)."""
    weight = as_numpy(weight)
    yield "attention_output/kernel", weight.T.reshape(heads, -1, weight.shape[0])
    if bias is not None:
        yield "attention_output/bias", as_numpy(bias)


def as_numpy(x):
    return x.detach().cpu().numpy().copy()


def randomize(module, seed=5):
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)
    module.eval()


def additive(seen):
    import torch

    hidden = torch.finfo(torch.float32).min
    return torch.where(torch.as_tensor(seen), 0.0, hidden)[None, None]


# The models -----------------------------------------------------------------------------


def grouped(head_dim, heads, kv_heads, use_bias=False, **options):
    return {
        "head_dim": head_dim,
        "num_query_heads": heads,
        "num_key_value_heads": kv_heads,
        "use_bias": use_bias,
        **options,
    }


def multi(heads, key_dim, use_bias=False, **options):
    return {"num_heads": heads, "key_dim": key_dim, "use_bias": use_bias, **options}


def latent(heads, query_rank=None, mscale=1.0):
    yarn = {**DEEPSEEK, "mscale": mscale, "mscale_all_dim": mscale}
    return {
        "num_heads": heads,
        "head_dim": 128,
        "kv_rank": 512,
        **({} if query_rank is None else {"query_rank": query_rank}),
        "rotary_dim": 64,
        "position": RotaryPosition(layout="interleaved", scaling=yarn),
    }


LLAMA3 = {
    "type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GPT_OSS = {
    "type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}

DEEPSEEK = {
    "type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}

olmo2 = llama_like(
    "olmo2",
    "Olmo2Config",
    "Olmo2Attention",
    "Olmo2RotaryEmbedding",
    config={"rms_norm_eps": 1e-6},
)
cohere = llama_like(
    "cohere",
    "CohereConfig",
    "CohereAttention",
    "CohereRotaryEmbedding",
    config={"layer_norm_eps": 1e-5, "use_qk_norm": True},
)
llama = llama_like("llama", "LlamaConfig", "LlamaAttention", "LlamaRotaryEmbedding")
mistral = llama_like("mistral", "MistralConfig", "MistralAttention", "MistralRotaryEmbedding")
gemma2 = llama_like(
    "gemma2",
    "Gemma2Config",
    "Gemma2Attention",
    "Gemma2RotaryEmbedding",
    config={"query_pre_attn_scalar": H, "attn_logit_softcapping": 50.0},
)
gemma3 = functools.partial(
    llama_like,
    "gemma3",
    "Gemma3TextConfig",
    "Gemma3Attention",
    "Gemma3RotaryEmbedding",
    config={"query_pre_attn_scalar": H},
)
qwen3 = llama_like("qwen3", "Qwen3Config", "Qwen3Attention", "Qwen3RotaryEmbedding")
gpt_oss = llama_like("gpt_oss", "GptOssConfig", "GptOssAttention", "GptOssRotaryEmbedding")


def three_axes():
    """Not those of one order: an image within text has rows and columns."""
    return np.random.default_rng(8).integers(0, 60, (1, T, 3))


def window_of_seven():
    return np.stack(np.meshgrid(*[np.arange(7)] * 2, indexing="ij"), axis=-1).reshape(1, 49, 2)


MODELS = {
    "Llama 2 7B": Model(
        GroupQueryAttention,
        lambda: grouped(128, 32, 32, position=RotaryPosition()),
        llama,
    ),
    "Llama 3.1 8B": Model(
        GroupQueryAttention,
        lambda: grouped(128, 32, 8, position=RotaryPosition(5e5, scaling=LLAMA3)),
        llama,
    ),
    "Mistral 7B": Model(
        GroupQueryAttention,
        lambda: grouped(128, 32, 8, sliding_window=4096, position=RotaryPosition()),
        mistral,
    ),
    "Gemma 2 9B, windows": Model(
        GroupQueryAttention,
        lambda: grouped(
            256, 16, 8, sliding_window=4096, logit_soft_cap=50.0, position=RotaryPosition()
        ),
        gemma2,
    ),
    "Gemma 2 9B, global": Model(
        GroupQueryAttention,
        lambda: grouped(256, 16, 8, logit_soft_cap=50.0, position=RotaryPosition()),
        gemma2,
    ),
    "Gemma 3 4B, windows": Model(
        GroupQueryAttention,
        lambda: grouped(256, 8, 4, sliding_window=1024, qk_norm=True, position=RotaryPosition()),
        gemma3(rope_per_layer="sliding_attention"),
    ),
    "Gemma 3 4B, global": Model(
        GroupQueryAttention,
        lambda: grouped(
            256,
            8,
            4,
            qk_norm=True,
            position=RotaryPosition(1e6, scaling={"type": "linear", "factor": 8.0}),
        ),
        gemma3(rope_per_layer="full_attention"),
    ),
    "Qwen 3 8B": Model(
        GroupQueryAttention,
        lambda: grouped(128, 32, 8, qk_norm=True, position=RotaryPosition(1e6)),
        qwen3,
    ),
    "GPT-J 6B": Model(
        MultiHeadAttention,
        lambda: multi(16, 256, position=RotaryPosition(fraction=0.25, layout="interleaved")),
        gpt_j,
        square=True,
    ),
    "GPT-NeoX 20B": Model(
        MultiHeadAttention,
        lambda: multi(64, 96, use_bias=True, position=RotaryPosition(fraction=0.25)),
        gpt_neox,
        square=True,
    ),
    "MPT 7B": Model(
        MultiHeadAttention,
        lambda: multi(32, 128, position=AlibiPosition()),
        mpt,
        square=True,
    ),
    "T5 base, encoder": Model(
        MultiHeadAttention,
        lambda: multi(12, 64, position=RelativePosition()),
        t5,
        causal=False,
    ),
    "T5 base, decoder": Model(
        MultiHeadAttention, lambda: multi(12, 64, position=RelativePosition()), t5
    ),
    "gpt-oss 20B, windows": Model(
        GroupQueryAttention,
        lambda: grouped(
            64,
            64,
            8,
            use_bias=True,
            sliding_window=128,
            attention_sink=True,
            position=RotaryPosition(150000.0, scaling=GPT_OSS),
        ),
        gpt_oss,
    ),
    "gpt-oss 20B, global": Model(
        GroupQueryAttention,
        lambda: grouped(
            64,
            64,
            8,
            use_bias=True,
            attention_sink=True,
            position=RotaryPosition(150000.0, scaling=GPT_OSS),
        ),
        gpt_oss,
    ),
    "OLMo 2 7B": Model(
        GroupQueryAttention,
        lambda: grouped(128, 32, 32, qk_norm={"over": "width"}, position=RotaryPosition(5e5)),
        olmo2,
    ),
    "Command R+": Model(
        GroupQueryAttention,
        lambda: grouped(
            128,
            96,
            8,
            qk_norm={"type": "layer", "per_head": True, "epsilon": 1e-5},
            position=RotaryPosition(7.5e7, layout="interleaved"),
        ),
        cohere,
    ),
    "DeepSeek-V2 Lite": Model(LatentAttention, lambda: latent(16, mscale=0.707), deepseek(2)),
    "DeepSeek-V3": Model(LatentAttention, lambda: latent(128, query_rank=1536), deepseek(3)),
    "Qwen2-VL 7B": Model(
        GroupQueryAttention,
        lambda: grouped(
            128, 28, 4, use_bias=True, position=RotaryPosition(1e6, sections=(16, 24, 24))
        ),
        functools.partial(qwen_vl, "qwen2_vl"),
        square=True,
        position=lambda: RotaryPosition(1e6, sections=(1, 1, 2)),
        places=three_axes,
    ),
    "Qwen3-VL 8B": Model(
        GroupQueryAttention,
        lambda: grouped(
            128,
            32,
            8,
            qk_norm=True,
            position=RotaryPosition(5e6, sections={"type": "interleaved", "sizes": (24, 20, 20)}),
        ),
        functools.partial(qwen_vl, "qwen3_vl"),
        square=True,
        position=lambda: RotaryPosition(5e6, sections={"type": "interleaved", "sizes": (2, 1, 1)}),
        places=three_axes,
    ),
    "ModernBERT base, windows": Model(
        MultiHeadAttention,
        lambda: multi(12, 64, sliding_window=65, position=RotaryPosition()),
        modernbert,
        causal=False,
        square=True,
    ),
    "ModernBERT base, global": Model(
        MultiHeadAttention,
        lambda: multi(12, 64, position=RotaryPosition(1.6e5)),
        modernbert,
        causal=False,
        square=True,
    ),
    "Swin tiny, stage 1": Model(
        MultiHeadAttention,
        lambda: multi(3, 32, use_bias=True, position=RelativePosition(max_distance=6, axes=2)),
        swin,
        causal=False,
        square=True,
        places=window_of_seven,
        length=49,
    ),
}
