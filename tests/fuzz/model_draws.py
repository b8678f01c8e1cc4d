"""Draws small models to decode: stacks of layers that act per position, and hostile ones.

A hostile part looks at other tokens, often in ways that a few tokens or rare ids do not show. It
may be refused; if it is accepted its tokens must be those of full passes.
"""

import keras
import numpy as np
from draws import chance, maybe, pick
from keras import layers, ops

import kerasattention as ka
from kerasattention._keras import flatten_layers


class LearnedPositions(layers.Layer):
    """Adds a vector learned for each index."""

    def build(self, shape):
        self.table = self.add_weight(shape=(256, shape[-1]), initializer="normal")

    def call(self, x):
        return x + self.table[: ops.shape(x)[1]]

    def compute_output_shape(self, shape):  # on JAX a slice of unknown length has no shape
        return shape


class Scaled(layers.Layer):
    """A layer of one's own that acts per position."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return ops.tanh(x) * self.factor + ops.mean(x, axis=-1, keepdims=True)


class Block(layers.Layer):
    """A transformer block as users write it, its attention inside."""

    def __init__(self, options, **kwargs):
        super().__init__(**kwargs)
        self.options = options
        self.attention = ka.GroupQueryAttention(**options)
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.attention.build(shape)
        self.norm.build(shape)

    def call(self, x):
        return x + self.attention(self.norm(x), use_causal_mask=True)

    def get_config(self):
        return super().get_config() | {"options": self.options}


def position(rng, size, groups):
    """A function that makes a position, or None."""
    if takes_axes() and size >= 4:
        return lambda: ka.RotaryPosition(50.0, sections=(1, size // 2 - 1))
    made = [
        None,
        None,
        None,
        lambda: ka.RotaryPosition(),
        lambda: ka.RotaryPosition(500.0, layout="interleaved"),
        lambda: ka.AlibiPosition(),
        lambda: ka.RelativePosition(8, 20),
        lambda: ka.RelativeKeysPosition(6),
        lambda: ka.RelativeKeysPosition(40, "transformer_xl"),
    ]
    if "positions" not in ARGUMENTS:  # whose largest one sets the frequencies
        made.append(lambda: ka.RotaryPosition(scaling=DYNAMIC))
    if size == 4:
        made.append(lambda: ka.RotaryPosition(50.0, sections=(1, 1)))
        made.append(lambda: ka.RotaryPosition(50.0, scaling=PROPORTIONAL))
    if groups == 1:
        made.append(lambda: ka.RelativeKeysPosition(13, "deberta", num_buckets=8))
        made.append(lambda: ka.RelativeKeysPosition(7, "huang"))
    return pick(rng, *made)


DYNAMIC = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 128}
PROPORTIONAL = {"type": "proportional", "partial_rotary_factor": 0.5}


LATE_NORM = {"over": "width", "after_position": True, "offset": 1.0}


def options_of_ours(rng, size, groups):
    made = position(rng, size, groups)
    return {
        "sliding_window": maybe(rng, 0.35, lambda: int(rng.integers(1, 14))),
        "use_gate": pick(rng, False, False, False, False, True, "head"),
        "position": made() if made else None,
        "qk_norm": pick(rng, False, False, False, False, True, "layer", "l2", LATE_NORM),
        "logit_soft_cap": maybe(rng, 0.2, lambda: 5.0),
        "attention_sink": chance(rng, 0.25),
        "value_norm": chance(rng, 0.15),
        "scale": pick(rng, None, None, None, 0.3, "learned"),
        "query_scale": maybe(rng, 0.2, lambda: {"type": "llama4", "floor_scale": 3}),
        "use_bias": chance(rng, 0.6),
        "dropout": pick(rng, 0.0, 0.0, 0.3),
        "flash_attention": pick(rng, None, None, False, True),
        "mask": maybe(rng, 0.3, lambda: pick(rng, *MASKS)),
    }


# With `use_causal_mask` beside them.
MASKS = (
    ka.WindowMask(5) | ka.PrefixMask(2),
    ka.ChunkMask(4),
    ka.DilatedMask(2) | ka.WindowMask(3, 1),
    ~ka.WindowMask(2) | ka.WindowMask(1),
)


def heads(rng):
    K = pick(rng, 1, 2, 3)
    return {
        "head_dim": pick(rng, 2, 4, 6),
        "num_query_heads": K * pick(rng, 1, 2, 3),
        "num_key_value_heads": K,
    }


def gqa_options(rng):
    sizes = heads(rng)
    groups = sizes["num_query_heads"] // sizes["num_key_value_heads"]
    sizes["use_key_as_value"] = chance(rng, 0.1)
    return sizes | options_of_ours(rng, sizes["head_dim"], groups)


# The model's other inputs by the argument of our layers that they are, while one is drawn.
ARGUMENTS = {}


def takes_axes():
    """Whether the positions have two axes."""
    return "positions" in ARGUMENTS and len(ARGUMENTS["positions"].shape) == 3


def given_to(layer):
    """The inputs that a layer takes."""
    has_axes = isinstance(layer.position, ka.RotaryPosition) and layer.position.axes == 2
    names = set(ARGUMENTS) - ({"positions"} if takes_axes() and not has_axes else set())
    return {name: ARGUMENTS[name] for name in sorted(names)}


def our_gqa(rng, x):
    layer = ka.GroupQueryAttention(**gqa_options(rng))
    return x + layer(x, use_causal_mask=True, **given_to(layer))


def our_mha(rng, x):
    size = pick(rng, 2, 4)
    layer = ka.MultiHeadAttention(
        pick(rng, 1, 2, 3),
        size,
        pick(rng, None, 3),
        use_causal_mask=True,
        **options_of_ours(rng, size, 1),
    )
    inputs = (x,) if chance(rng, 0.5) else (x, x)
    return x + layer(*inputs, **given_to(layer))


def our_latent(rng, x):
    options = options_of_ours(rng, 4, 1)
    for name in ("qk_norm", "value_norm"):
        options.pop(name)
    options["position"] = maybe(rng, 0.3, lambda: ka.RotaryPosition(50.0))
    layer = ka.LatentAttention(
        pick(rng, 1, 2, 3),
        pick(rng, 2, 5),
        pick(rng, 3, 8),
        query_rank=pick(rng, None, 4),
        rotary_dim=pick(rng, 2, 4),
        value_dim=pick(rng, None, 3),
        use_causal_mask=True,
        **options,
    )
    return x + layer(x, **given_to(layer))


def of_axes(rng, x):
    """A layer that takes positions of two axes."""
    options = options_of_ours(rng, 4, 1)
    options["position"] = ka.RotaryPosition(50.0, sections=(1, 1))
    layer = ka.MultiHeadAttention(pick(rng, 1, 3), 4, use_causal_mask=True, **options)
    return x + layer(x, **given_to(layer))


def shared_keys(rng, x):
    """A layer, and one later that uses its keys and values, in some models called twice."""
    options = gqa_options(rng)
    first = ka.GroupQueryAttention(**options, use_causal_mask=True)
    x = x + first(x, **given_to(first))
    x = pick(rng, dense, normed, per_position)(rng, x)
    again = dict(options, use_gate=chance(rng, 0.3), attention_sink=chance(rng, 0.3))
    again |= {"value_norm": False, "use_key_as_value": False}  # options of the first layer
    if isinstance(options["position"], keras.layers.Layer):
        again["position"] = options["position"].from_config(options["position"].get_config())
    second = ka.GroupQueryAttention(**again, use_causal_mask=True, key_value_of=first)
    x = x + second(x, **given_to(second))
    return x + second(x, **given_to(second)) if chance(rng, 0.2) else x


def keras_mha(rng, x):
    layer = layers.MultiHeadAttention(pick(rng, 1, 2, 3), 4, use_bias=chance(rng, 0.5))
    return x + layer(x, x, use_causal_mask=True)


def keras_gqa(rng, x):
    return x + layers.GroupQueryAttention(**heads(rng))(x, x, use_causal_mask=True)


def normed(rng, x):
    kinds = (layers.LayerNormalization, layers.RMSNormalization, layers.BatchNormalization)
    return pick(rng, *kinds)()(x)


def dense(rng, x):
    hidden = layers.Dense(pick(rng, 5, 9), activation=pick(rng, "gelu", "relu", "tanh"))(x)
    return x + layers.Dropout(0.2)(layers.Dense(x.shape[-1])(hidden))


def gated(rng, x):
    gate = layers.Dense(x.shape[-1], activation="sigmoid")(x)
    return layers.Add()([x, layers.Multiply()([gate, layers.Dense(x.shape[-1])(x)])])


def einsum(rng, x):
    return x + layers.EinsumDense("btd,de->bte", x.shape[1:], bias_axes="e")(x)


def distributed(rng, x):
    return x + layers.TimeDistributed(layers.Dense(x.shape[-1]))(x)


def joined(rng, x):
    both = layers.Concatenate()([x, layers.Activation("silu")(x)])
    return layers.Dense(x.shape[-1])(both)


def operations(rng, x):
    how = pick(rng, ops.tanh, ops.silu, lambda x: x * 1.5 - 0.1, lambda x: ops.exp(-ops.square(x)))
    return x + how(x)


def per_position(rng, x):
    """Lambdas that act on each position by itself."""
    how = pick(
        rng,
        lambda x: x * 0.5 + ops.sin(x),
        lambda x: ops.softmax(x, axis=-1) + x,
        lambda x: x / (1.0 + ops.max(ops.abs(x), axis=-1, keepdims=True)),
        lambda x: ops.flip(x, axis=-1) + x,
        lambda x: x - ops.mean(x, axis=-1, keepdims=True),
        lambda x: ops.cumsum(x, axis=-1) * 0.3,
    )
    return layers.Lambda(how)(x)


def own_layer(rng, x):
    return Scaled()(x)


def own_block(rng, x):
    return Block(gqa_options(rng))(x)


def nested(rng, x):
    """A model within the model, called once or twice."""
    outer = dict(ARGUMENTS)
    ARGUMENTS.clear()
    inner = keras.Input(x.shape[1:])
    y = inner
    for _ in range(int(rng.integers(1, 3))):
        y = pick(rng, *PARTS[:-1])(rng, y)
    model = keras.Model(inner, y)
    ARGUMENTS.update(outer)
    x = model(x)
    return model(x) if chance(rng, 0.3) else x


def learned_positions(rng, x):
    return LearnedPositions()(x)


PARTS = (
    *(our_gqa, our_gqa, our_gqa, our_mha, our_mha, keras_mha, keras_gqa, own_block),
    *(our_latent, shared_keys),
    *(normed, normed, dense, gated, einsum, distributed, joined, operations, per_position),
    *(own_layer, learned_positions, nested),
)


# Of a model with Keras's layers a copy is decoded, which Lambdas prevent.
KERAS, COPIED = (keras_mha, keras_gqa, nested), (per_position, own_block, own_layer, nested)

# Hostile parts ----------------------------------------------------------------------


def back(x, steps):
    """Each token's features `steps` earlier, zeros at the start."""
    return ops.pad(x, [(0, 0), (steps, 0), (0, 0)])[:, : ops.shape(x)[1]]


def look_back(rng, x, tokens):
    steps = int(rng.integers(1, 14))
    return layers.Lambda(lambda x: x + back(x, steps))(x)


def look_ahead(rng, x, tokens):
    steps = int(rng.integers(1, 8))
    return layers.Lambda(lambda x: x + ops.pad(x, [(0, 0), (0, steps), (0, 0)])[:, steps:])(x)


def running(rng, x, tokens):
    how = pick(
        rng,
        lambda x: x + 0.1 * ops.cumsum(x, axis=1),
        lambda x: x - ops.mean(x, axis=1, keepdims=True),
        lambda x: x + ops.max(x, axis=1, keepdims=True),
        lambda x: ops.flip(x, axis=1),
        lambda x: x - x[:, :1],
        lambda x: x * ops.cast(ops.shape(x)[1], x.dtype) * 0.1,
    )
    return layers.Lambda(how)(x)


def started_by_id(rng, x, tokens):
    """Counts a rare token so far: nothing changes until it comes."""
    rare, limit = int(rng.integers(0, 23)), pick(rng, 2, 6)

    def count(t):
        return ops.minimum(ops.cumsum(ops.cast(ops.equal(t, rare), "int32"), axis=1), limit - 1)

    numbers = layers.Lambda(count, output_shape=(None,), dtype="int32")(tokens)
    return x + layers.Embedding(limit, x.shape[-1])(numbers)


def repeats(rng, x, tokens):
    """Whether a token is the one `steps` before."""
    steps = int(rng.integers(1, 9))

    def same(t):
        earlier = ops.pad(t, [(0, 0), (steps, 0)], constant_values=-1)[:, : ops.shape(t)[1]]
        return ops.cast(ops.equal(t, earlier), "int32")

    numbers = layers.Lambda(same, output_shape=(None,), dtype="int32")(tokens)
    return x + layers.Embedding(2, x.shape[-1])(numbers)


def convolution(rng, x, tokens):
    layer = layers.Conv1D(x.shape[-1], pick(rng, 2, 3), padding=pick(rng, "causal", "same"))
    return x + layer(x)


def recurrent(rng, x, tokens):
    return x + layers.GRU(x.shape[-1], return_sequences=True)(x)


def not_causal(rng, x, tokens):
    return x + ka.GroupQueryAttention(**heads(rng))(x)


def over_time(rng, x, tokens):
    return layers.UnitNormalization(axis=1)(x)


HOSTILE = (
    *(look_back, look_ahead, running, started_by_id, repeats, convolution, recurrent),
    *(not_causal, over_time),
)


class Drawn:
    """A model, what it is made of, and whether it may be refused."""

    def __init__(self, rng, without=()):
        self.parts = []
        vocabulary, features = pick(rng, 7, 23, 61), pick(rng, 6, 8, 12)
        hostile = chance(rng, 0.25) and "hostile" not in without
        self.vocabulary, self.hostile = vocabulary, hostile
        # A pass of each prefix of a hostile model is needed.
        self.length = None if hostile else maybe(rng, 0.1, lambda: 48)
        tokens = keras.Input((self.length,), dtype="int32", name="tokens")
        self.given = [] if hostile or self.length else given_arguments(rng)
        dtypes = {"positions": pick(rng, "int32", "float32")}
        self.position_axes = (2,) if "positions" in self.given and chance(rng, 0.4) else ()
        inputs = {
            name: keras.Input(
                (self.length, *(self.position_axes if name == "positions" else ())),
                dtype=dtypes.get(name, "int32"),
                name=name,
            )
            for name in self.given
        }
        ARGUMENTS.clear()
        ARGUMENTS.update(inputs)
        tied = chance(rng, 0.2) and hasattr(layers, "ReversibleEmbedding")
        kind = layers.ReversibleEmbedding if tied else layers.Embedding
        embedding = kind(vocabulary, features, mask_zero=chance(rng, 0.1))
        self.masked = embedding.mask_zero
        self.first = 0  # the least token of prompts
        x = embedding(tokens)
        parts = [pick(rng, *PARTS) for _ in range(int(rng.integers(1, 5)))]
        if hostile:
            parts.insert(int(rng.integers(0, len(parts) + 1)), pick(rng, *HOSTILE))
        if "copied" in without and any(part in KERAS for part in parts):
            parts = [part for part in parts if part not in (*COPIED, *HOSTILE)]
        if self.given:  # an input that nothing reads is no input
            parts.append(pick(rng, our_gqa, our_mha, our_latent, shared_keys))
        if self.position_axes:
            parts.append(of_axes)
        for part in parts:
            self.parts.append(part.__name__)
            x = part(rng, x, tokens) if part in HOSTILE else part(rng, x)
        x = embedding(x, reverse=True) if tied else layers.Dense(vocabulary)(x)
        if chance(rng, 0.1):
            self.parts.append("softmax")
            x = layers.Softmax()(x)
        ARGUMENTS.clear()
        self.model = keras.Model([tokens, *inputs.values()], x)
        if self.masked and (hostile or has_keras_attention(self.model)):
            # What Keras's layers give at padding depends on later tokens.
            self.first = 1
        for variable in self.model.trainable_weights:
            variable.assign(variable + 0.4 * rng.normal(size=variable.shape))

    def describe(self):
        return {
            "parts": self.parts,
            "vocabulary": self.vocabulary,
            "length": self.length,
            "mask_zero": self.masked,
            "given": self.given,
            "position_axes": self.position_axes,
            "hostile": self.hostile,
        }


def has_keras_attention(model):
    kinds = keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention
    return any(isinstance(layer, kinds) for layer in flatten_layers(model))


def given_arguments(rng):
    """Names of arguments that inputs of the model are."""
    names = [name for name in ("segment_ids", "bidirectional") if chance(rng, 0.1)]
    return names + (["positions"] if chance(rng, 0.1) else [])


def drawn_numbers(rng, name, prompt, length, axes=()):
    """Of each token of a row of `length` tokens, what one of these arguments is given.

    After the prompt tokens are in no span, and in its last segment; positions go on, but for those
    of several axes, which are in any order.
    """
    if name == "positions" and axes:
        return rng.integers(0, 30, (length, *axes))
    if name == "positions":
        return np.cumsum(rng.integers(1, 4, length)) + rng.integers(0, 5)
    numbers = np.zeros(length, int)
    if name == "bidirectional":
        numbers[:prompt] = rng.integers(0, 3, prompt)
        return numbers
    numbers[:prompt] = np.sort(rng.integers(1, 4, prompt)) if chance(rng, 0.7) else 1
    numbers[prompt:] = numbers[prompt - 1]
    return numbers


def prompts(rng, drawn, rows, ragged):
    """Token ids of some rows."""
    first = drawn.first
    lengths = rng.integers(1, 12, rows) if ragged else np.full(rows, int(rng.integers(1, 12)))
    return [rng.integers(first, drawn.vocabulary, size).astype("int32") for size in lengths]
