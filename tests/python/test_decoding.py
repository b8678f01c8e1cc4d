"""Token by token gives what the full pass gives, and what cannot is refused by name."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from decoding_models import (
    FEATURES,
    PROMPT,
    ROWS,
    TOKENS,
    VOCABULARY,
    attending,
    draw_tokens,
    embedded,
    full_pass,
    model_of,
    next_logits,
    numpy,
    with_weights,
)
from kerasattention._keras import set_keras_mask

MAX_LENGTH = 13


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(1)


def assert_same(found, expected):
    """Within 1e-4, of the size of the logits where that is more than 1."""
    size = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-4, atol=1e-4 * size)


def assert_decodes(model, tokens=None, max_length=MAX_LENGTH):
    """A prompt, then single tokens."""
    tokens = draw_tokens() if tokens is None else tokens
    expected = full_pass(model, tokens)
    decoder = ka.IncrementalDecoder(model, len(tokens), max_length)
    assert_same(decoder.prefill(tokens[:, :PROMPT]), expected[:, PROMPT - 1])
    for at in range(PROMPT, tokens.shape[1]):
        assert_same(decoder.step(tokens[:, at]), expected[:, at])
    assert decoder.length == tokens.shape[1]
    return decoder


OPTIONS = {
    "plain": {},
    "rotary": {"position": "rotary"},
    "rotary yarn": {"position": "yarn"},
    "alibi": {"position": "alibi"},
    "relative": {"position": "relative"},
    "window": {"sliding_window": 3},
    "window wider than the prompt": {"sliding_window": 7},
    "window and rotary": {"sliding_window": 4, "position": "rotary"},
    "window and alibi": {"sliding_window": 4, "position": "alibi"},
    "window and relative": {"sliding_window": 4, "position": "relative"},
    "gate": {"use_gate": True},
    "qk norm": {"qk_norm": True},
    "soft cap": {"logit_soft_cap": 2.0},
    "sink": {"attention_sink": True},
    "no bias": {"use_bias": False},
    "dropout": {"dropout": 0.5},
    "plain kernel": {"flash_attention": False},
    "never hold scores": {"flash_attention": True},
    "all": {
        "sliding_window": 4,
        "position": "rotary",
        "use_gate": True,
        "qk_norm": True,
        "logit_soft_cap": 5.0,
        "attention_sink": True,
    },
}


def with_position(options):
    kinds = {
        "rotary": lambda: ka.RotaryPosition(),
        "yarn": lambda: ka.RotaryPosition(
            scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
        ),
        "alibi": ka.AlibiPosition,
        "relative": lambda: ka.RelativePosition(6, 9),
    }
    options = dict(options)
    if "position" in options:
        options["position"] = kinds[options["position"]]()
    return options


# Layers upon each other are compiled together, which takes less time than one by one.
STACKS = {
    "positions": ("rotary", "rotary yarn", "alibi", "relative"),
    "windows": (
        *("window", "window wider than the prompt", "window and rotary"),
        *("window and alibi", "window and relative"),
    ),
    "logits": ("gate", "qk norm", "soft cap", "sink", "no bias"),
    "kernels": ("plain", "dropout", "plain kernel", "never hold scores", "all"),
}


def test_every_option_is_in_a_stack():
    assert sorted(sum(STACKS.values(), ())) == sorted(OPTIONS)


def stacked(names):
    def body(x):
        for name in names:
            x = attending(**with_position(OPTIONS[name]))(x)
        return x

    return model_of(body)


@pytest.mark.parametrize("stack", STACKS)
def test_every_option_of_the_layers_decodes_as_the_full_pass(stack):
    assert_decodes(stacked(STACKS[stack]))


def test_multi_head_attention_with_another_value_size_and_output_decodes():
    def body(x):
        heads = ka.MultiHeadAttention(3, 5, value_dim=7, output_shape=FEATURES)
        return x + heads(x, x, use_causal_mask=True)

    assert_decodes(model_of(body))


def test_keras_own_attention_decodes_and_follows_its_weights():
    def body(x):
        return x + layers.MultiHeadAttention(3, 5)(x, x, use_causal_mask=True)

    model = model_of(body)
    decoder = assert_decodes(model)
    with_weights(model, seed=8)
    tokens = draw_tokens()
    decoder.reset()
    assert_same(decoder.prefill(tokens), full_pass(model, tokens)[:, -1])


# Lengths and positions ------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 3, 4])
def test_several_tokens_at_once_after_others(window):
    model = model_of(attending(sliding_window=window, position=ka.RotaryPosition()))
    tokens = draw_tokens()
    expected = full_pass(model, tokens)
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    decoder.prefill(tokens[:, :2])
    assert_same(decoder.step(tokens[:, 2:9]), expected[:, 8])  # longer than the window
    assert_same(decoder.step(tokens[:, 9]), expected[:, 9])
    assert_same(decoder.step(tokens[:, 10:11]), expected[:, 10])


def test_prompts_of_different_lengths_do_as_each_alone():
    model = stacked(("plain", "rotary", "alibi", "relative", "window"))
    tokens = draw_tokens()
    rows = [list(tokens[0, :7]), list(tokens[1, :3]), list(tokens[2, :1])]
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    found = decoder.prefill(rows)
    for following in draw_tokens(4, ROWS, seed=5):
        assert_same(found, next_logits(model, rows, MAX_LENGTH))
        rows = [[*row, token] for row, token in zip(rows, following, strict=True)]
        found = decoder.step(following)


@pytest.mark.parametrize("rows", [[[1, 2, 3], [4]], [[5, 6], [7, 8, 9]]])
def test_padding_on_the_left_changes_nothing_where_the_index_counts(rows):
    model = model_of(lambda x: attending()(LearnedPositions()(x)))
    decoder = ka.IncrementalDecoder(model, 2, MAX_LENGTH)
    found = decoder.prefill(rows)
    for token in (3, 0):
        assert_same(found, next_logits(model, rows, MAX_LENGTH))
        rows = [[*row, token] for row in rows]
        found = decoder.step([token, token])


def test_a_keras_mask_of_the_tokens_is_kept_in_the_cache():
    tokens = draw_tokens()
    tokens[0, 2], tokens[1, 7] = 0, 0
    model = model_of(lambda x: attending()(attending()(x)), mask_zero=True)
    assert_decodes(model, tokens)


def test_a_mask_that_a_reversible_embedding_attaches_is_kept_in_the_cache():
    tokens = draw_tokens()
    tokens[0, 2], tokens[1, 7] = 0, 0
    given = keras.Input((None,), dtype="int32")
    embedding = layers.ReversibleEmbedding(VOCABULARY, FEATURES, mask_zero=True)
    latent = ka.LatentAttention(2, 3, 5, rotary_dim=2, use_causal_mask=True)
    block, x = Block(), embedding(given)
    block.supports_masking = True
    x = block(x) + latent(x)
    logits = embedding(attending()(x), reverse=True)
    model = with_weights(keras.Model(given, logits))
    assert_decodes(model, tokens)
    probabilities = keras.Model(given, layers.Softmax()(logits))
    found, expected = (ka.generate(x, tokens[:, :3], 4) for x in (probabilities, model))
    np.testing.assert_array_equal(found, expected)


def test_a_mask_of_one_of_two_layers_that_share_keys_is_not_of_the_other():
    """The second layer's input, a sum, has none."""
    tokens = draw_tokens()
    tokens[0, 2], tokens[1, 7] = 0, 0
    given = keras.Input((None,), dtype="int32")
    embedding = layers.ReversibleEmbedding(VOCABULARY, FEATURES, mask_zero=True)
    first = ka.GroupQueryAttention(6, 4, 2, use_causal_mask=True)
    second = ka.GroupQueryAttention(6, 2, 2, use_causal_mask=True, key_value_of=first)
    x = embedding(given)
    x = x + first(x)
    model = keras.Model(given, embedding(x + second(x), reverse=True))
    assert_decodes(with_weights(model), tokens)


class Marking(layers.Layer):
    """Attaches a mask in its call, which no spec shows."""

    def call(self, x):
        x = x + 0.0
        set_keras_mask(x, ops.not_equal(x[:, :, 0], 0.0))
        return x


def test_a_mask_that_a_layer_attaches_in_its_call_is_refused():
    model = model_of(lambda x: attending()(Marking()(x)))
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    with pytest.raises(ValueError, match=r"an earlier layer attaches in its `call\(\)`"):
        decoder.prefill(draw_tokens())


def test_rows_may_outgrow_rolling_caches():
    model = model_of(lambda x: attending(sliding_window=4)(attending(sliding_window=3)(x)))
    tokens = draw_tokens(length=TOKENS)
    decoder = assert_decodes(model, tokens, max_length=4)
    assert decoder.unlimited
    assert decoder.room() is None


def test_a_window_in_some_layers_only_limits_the_length():
    model = model_of(lambda x: attending(sliding_window=3)(attending()(x)))
    decoder = ka.IncrementalDecoder(model, ROWS, PROMPT)
    assert not decoder.unlimited
    decoder.prefill(draw_tokens(length=PROMPT))
    with pytest.raises(ValueError, match=r"context is full: it holds 5 of `max_length` = 5"):
        decoder.step(draw_tokens()[:, 0])


def test_reset_forgets_everything():
    model = model_of(attending())
    tokens, others = draw_tokens(), draw_tokens(seed=9)
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    decoder.prefill(others)
    decoder.reset()
    assert decoder.length == 0
    expected = full_pass(model, tokens)
    assert_same(decoder.prefill(tokens[:, :3]), expected[:, 2])
    assert_same(decoder.step(tokens[:, 3]), expected[:, 3])


def test_new_weights_of_the_model_count_at_once():
    model = model_of(attending())
    decoder = assert_decodes(model)
    with_weights(model, seed=21)
    tokens = draw_tokens()
    expected = full_pass(model, tokens)
    decoder.reset()
    assert_same(decoder.prefill(tokens[:, :4]), expected[:, 3])
    assert_same(decoder.step(tokens[:, 4]), expected[:, 4])


@pytest.mark.parametrize(
    ("window", "slots"),
    [(None, MAX_LENGTH), (3, 3), (MAX_LENGTH + 1, MAX_LENGTH)],
)
def test_caches_have_exactly_the_size_that_was_promised(window, slots):
    model = model_of(
        lambda x: attending(sliding_window=window)(attending(sliding_window=window)(x))
    )
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    batch, kv_heads, head_size, layer_count, number = ROWS, 2, 6, 2, 4
    assert decoder.cache_bytes == 2 * batch * slots * kv_heads * head_size * number * layer_count


# Kinds of models --------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class LearnedPositions(layers.Layer):
    """Adds a vector learned for each index."""

    def build(self, shape):
        self.table = self.add_weight(shape=(MAX_LENGTH, shape[-1]), initializer="normal")
        self.built = True

    def call(self, x):
        return x + self.table[: ops.shape(x)[1]]

    def compute_output_shape(self, shape):
        return shape


class Block(layers.Layer):
    """A transformer block as users write it."""

    def __init__(self, causal=True, summing=False, **options):
        super().__init__(**options)
        self.attention = ka.GroupQueryAttention(6, 4, 2)
        self.norm = layers.LayerNormalization()
        self.dense = layers.Dense(FEATURES)
        self.causal, self.summing = causal, summing

    def call(self, x):
        x = x + self.attention(self.norm(x), use_causal_mask=self.causal)
        if self.summing:
            x = x + ops.cumsum(x, axis=1)
        return x + self.dense(x)


def sequential():
    return with_weights(
        keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(VOCABULARY, FEATURES),
                ka.GroupQueryAttention(6, 4, 2, use_causal_mask=True),
                layers.Dense(VOCABULARY),
            ]
        )
    )


def nested_twice():
    x = keras.Input((None, FEATURES))
    inner = keras.Model(x, attending()(layers.LayerNormalization()(x)))
    return model_of(lambda x: inner(inner(x)))


def nested_sequential():
    dense = keras.Sequential([layers.Dense(FEATURES, activation="relu"), layers.Dropout(0.3)])
    return model_of(lambda x: attending()(dense(attending()(x))))


def one_length():
    tokens, x = embedded(MAX_LENGTH)
    positions = layers.Embedding(MAX_LENGTH, FEATURES)(ops.arange(MAX_LENGTH))
    return with_weights(keras.Model(tokens, layers.Dense(VOCABULARY)(attending()(x + positions))))


MODELS = {
    "sequential": sequential,
    "a model nested twice": nested_twice,
    "a Sequential nested": nested_sequential,
    "layers of one's own": lambda: model_of(lambda x: Block()(Block()(x))),
    "learned positions": lambda: model_of(lambda x: attending()(LearnedPositions()(x))),
    "EinsumDense": lambda: model_of(
        lambda x: attending()(layers.EinsumDense("btd,dh->bth", output_shape=(None, FEATURES))(x))
    ),
    "TimeDistributed": lambda: model_of(
        lambda x: layers.TimeDistributed(layers.Dense(FEATURES))(attending()(x))
    ),
    "batch normalisation": lambda: model_of(lambda x: layers.BatchNormalization()(attending()(x))),
    "a convolution of one token": lambda: model_of(
        lambda x: layers.Conv1D(FEATURES, 1)(attending()(x))
    ),
    "no attention": lambda: model_of(layers.LayerNormalization()),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_make_decode(name):
    assert_decodes(MODELS[name]())


def test_a_model_of_one_length_decodes_up_to_it():
    model = one_length()
    tokens = draw_tokens(length=MAX_LENGTH)
    assert_decodes(model, tokens)
    with pytest.raises(ValueError, match=rf"at most {MAX_LENGTH}.*Received: {MAX_LENGTH + 1}"):
        ka.IncrementalDecoder(model, ROWS, MAX_LENGTH + 1)


def test_features_in_place_of_tokens_decode():
    x = keras.Input((None, FEATURES))
    model = with_weights(keras.Model(x, layers.Dense(2)(attending()(x))))
    series = np.random.default_rng(1).normal(size=(ROWS, TOKENS, FEATURES)).astype("float32")
    assert_decodes(model, series)


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_cross_attention_is_computed_once_and_an_encoder_too(as_dictionary):
    source = keras.Input((None,), dtype="int32", name="source")
    tokens, x = embedded()
    calls = []

    class Counted(layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, x):
            calls.append(1)
            return x + 0.5

    encoded = Counted()(layers.Embedding(VOCABULARY, FEATURES, mask_zero=True)(source))
    encoded = encoded + ka.MultiHeadAttention(2, 5)(encoded, encoded)
    x = attending()(x)
    x = x + ka.GroupQueryAttention(6, 4, 2)(x, encoded)
    model = keras.Model([source, tokens], layers.Dense(VOCABULARY)(attending()(x)))
    with_weights(model)
    sources, rows = draw_tokens(length=7, seed=4), draw_tokens()
    sources[1, 5:] = 0
    expected = full_pass(model, sources, rows)
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    given = {"source": sources} if as_dictionary else [sources]
    assert_same(decoder.prefill(rows[:, :PROMPT], given), expected[:, PROMPT - 1])
    calls.clear()
    for at in range(PROMPT, TOKENS):
        assert_same(decoder.step(rows[:, at]), expected[:, at])
    assert not calls


def test_low_precision_caches_have_the_layers_dtype():
    policy = keras.dtype_policies.DTypePolicy("bfloat16")
    layer = ka.GroupQueryAttention(6, 4, 2, dtype=policy)
    model = model_of(lambda x: layer(x, use_causal_mask=True))
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    assert decoder.cache_bytes == 2 * ROWS * MAX_LENGTH * 2 * 6 * 2
    tokens = draw_tokens()
    expected = full_pass(model, tokens)
    decoder.prefill(tokens[:, :4])
    found = numpy(decoder.step(tokens[:, 4]))
    np.testing.assert_allclose(found, expected[:, 4], atol=0.15, rtol=0.05)


# What is refused ---------------------------------------------------------------------


def explicit_mask(x):
    mask = np.tril(np.ones((MAX_LENGTH, MAX_LENGTH), bool))
    return ka.GroupQueryAttention(6, 4, 2, name="culprit")(x, attention_mask=mask)


def last_token(x):
    return attending()(x)[:, -1]


REFUSED = {
    "recurrent": (lambda x: layers.LSTM(FEATURES, return_sequences=True, name="culprit")(x), ""),
    "convolution": (
        lambda x: layers.Conv1D(FEATURES, 3, padding="causal", name="culprit")(x),
        "convolves over time",
    ),
    "pooling": (lambda x: layers.GlobalAveragePooling1D(name="culprit")(x), "pools over time"),
    "flatten": (lambda x: layers.Flatten(name="culprit")(x), "changes the time axis"),
    "not causal": (lambda x: ka.GroupQueryAttention(6, 4, 2, name="culprit")(x), "not causal"),
    "explicit mask": (explicit_mask, "attention_mask"),
    "normalised over time": (
        lambda x: layers.LayerNormalization(axis=[1, 2], name="culprit")(x),
        "depends on other tokens",
    ),
    "attention of Keras's core": (
        lambda x: layers.Attention(name="culprit")([x, x], use_causal_mask=True),
        "without a cache",
    ),
    "a block that sums": (
        lambda x: Block(summing=True, name="culprit")(x),
        "depends on other tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_decoded_is_refused_by_layer_and_reason(name):
    body, reason = REFUSED[name]
    model = model_of(body, length=MAX_LENGTH)
    with pytest.raises(ValueError, match=rf"'culprit' cannot be decoded.*{reason}"):
        ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)


def test_an_attention_inside_a_block_is_named_itself():
    model = model_of(lambda x: Block(causal=False)(x))
    attention = next(x for x in model._flatten_layers() if isinstance(x, ka.GroupQueryAttention))
    with pytest.raises(ValueError, match=f"'{attention.name}' cannot be decoded.*not causal"):
        ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)


def test_operations_over_time_are_refused():
    for body, name in ((lambda x: x + ops.cumsum(x, axis=1), "cumsum"), (last_token, "get_item")):
        with pytest.raises(ValueError, match=rf"'{name}.*cannot be decoded"):
            ka.IncrementalDecoder(model_of(body), ROWS, MAX_LENGTH)


def test_a_subclassed_model_is_refused():
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Functional or Sequential"):
        ka.IncrementalDecoder(Mine(), ROWS, MAX_LENGTH)


def test_bad_calls_name_the_argument_and_the_value():
    model = model_of(attending())
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        ka.IncrementalDecoder(model, 0, 5)
    with pytest.raises(ValueError, match=r"`max_length` must be a positive integer.*2\.5"):
        ka.IncrementalDecoder(model, 2, 2.5)
    decoder = ka.IncrementalDecoder(model, ROWS, 7)
    with pytest.raises(ValueError, match=r"`prefill\(\)` with a prompt"):
        decoder.step([1, 2, 3])
    with pytest.raises(ValueError, match=r"`tokens` must have shape \(3, t\).*\(2, 5\)"):
        decoder.prefill(draw_tokens(2, 5))
    with pytest.raises(ValueError, match="whole numbers"):
        decoder.prefill(draw_tokens(3, 5) + 0.5)
    with pytest.raises(ValueError, match="context is full"):
        decoder.prefill(draw_tokens(3, 8))
    decoder.prefill(draw_tokens(3, 5))
    with pytest.raises(ValueError, match=r"hold 5 tokens; call `reset\(\)`"):
        decoder.prefill(draw_tokens(3, 5))
    with pytest.raises(ValueError, match=r"`tokens` must have shape \(3,\).*\(2,\)"):
        decoder.step([1, 2])


def test_a_conversation_that_grows_is_given_room_to():
    from kerasattention.decoding.pool import borrowed_decoder

    def decoder_for(length):
        with borrowed_decoder(model, 2, length) as decoder:
            return decoder

    model = model_of(attending())
    first, second = decoder_for(60), decoder_for(70)
    assert (first.max_length, second.max_length) == (64, 128)
    assert decoder_for(120) is second
    assert decoder_for(300).max_length == 320
    assert decoder_for(40).max_length == 64
