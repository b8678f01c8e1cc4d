"""Prompts with segments or spans, decoded token by token as full passes give it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from decoding_models import FEATURES, VOCABULARY, draw_tokens, full_pass, numpy, with_weights
from kerasattention.decoding.graph.plan import make_plan
from kerasattention.decoding.graph.prompt_arguments import extended, prompt_inputs

ROWS, PROMPT, TOKENS, MAX_LENGTH = 2, 7, 11, 13
SPANS = np.array([[0, 1, 1, 1, 0, 2, 2], [3, 3, 0, 0, 3, 3, 3]])
SEGMENTS = np.array([[1, 1, 2, 2, 2, 3, 3], [4, 4, 4, 4, 4, 4, 9]])
IDS = {"bidirectional": SPANS, "segment_ids": SEGMENTS}
OPTIONS = {
    "plain": {},
    "rotary, window": {"sliding_window": 3, "position": "rotary"},
    "alibi": {"position": "alibi"},
    "relative": {"position": "relative"},
    "chunks": {"mask": "chunks"},
    "latents": {"kv_rank": 5},
}


def made(options):
    options = dict(options)
    kinds = {"rotary": ka.RotaryPosition, "alibi": ka.AlibiPosition}
    kinds |= {"relative": lambda: ka.RelativePosition(6, 9)}
    if "position" in options:
        options["position"] = kinds[options["position"]]()
    if "mask" in options:
        options["mask"] = ka.ChunkMask(5) & ka.CausalMask()
    if "kv_rank" in options:
        return ka.LatentAttention(4, 6, rotary_dim=4, use_causal_mask=True, **options)
    return ka.GroupQueryAttention(6, 4, 2, use_causal_mask=True, **options)


def model_of(*arguments, options=None, between=lambda x: x, length=None, depth=1):
    """Attention layers that all get the inputs named `arguments`."""
    given = {name: keras.Input((length,), dtype="int32", name=name) for name in arguments}
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    for _ in range(depth):
        x = between(x + made(options or {})(x, **given))
    output = layers.Dense(VOCABULARY)(x)
    return with_weights(keras.Model([*given.values(), tokens], output))


def test_the_tokens_are_the_input_that_is_no_argument_of_attention():
    given = {name: keras.Input((None,), dtype="int32", name=name) for name in IDS}
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = made({})(layers.Embedding(VOCABULARY, FEATURES)(tokens), **given)
    output = layers.Dense(VOCABULARY)(x)
    for order in ([tokens, *given.values()], [*given.values(), tokens]):
        plan = make_plan(keras.Model(order, output))
        assert plan.program.specs[plan.tokens].name == "tokens"


def whole(argument, ids, length):
    """What a full pass is given: later tokens are in the last segment, and in no span."""
    later = ids[:, -1:] if argument == "segment_ids" else np.zeros((len(ids), 1), int)
    return np.concatenate([ids, np.repeat(later, length - ids.shape[1], axis=1)], axis=1)


def close(found, expected):
    size = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-4, atol=1e-4 * size)


def assert_decodes(model, *arguments, decoder=None):
    tokens = draw_tokens(ROWS, TOKENS)
    inputs = {name: IDS[name] for name in arguments}
    expected = full_pass(model, *(whole(n, x, TOKENS) for n, x in inputs.items()), tokens)
    decoder = decoder or ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    close(decoder.prefill(tokens[:, :PROMPT], inputs), expected[:, PROMPT - 1])
    close(decoder.step(tokens[:, PROMPT]), expected[:, PROMPT])
    close(decoder.step(tokens[:, PROMPT + 1 : PROMPT + 3]), expected[:, PROMPT + 2])
    close(decoder.step(tokens[:, PROMPT + 3]), expected[:, PROMPT + 3])
    return decoder


@pytest.mark.parametrize("name", OPTIONS)
def test_spans_and_segments_of_a_prompt(name):
    arguments = ("bidirectional", "segment_ids")
    decoder = assert_decodes(model_of(*arguments, options=OPTIONS[name]), *arguments)
    decoder.reset()
    assert_decodes(decoder._held, *arguments, decoder=decoder)


@pytest.mark.parametrize("argument", IDS)
def test_each_by_itself(argument):
    model = model_of(argument, depth=2)
    assert_decodes(model, argument)
    # They make a difference.
    tokens = draw_tokens(ROWS, PROMPT)
    decoders = [ka.IncrementalDecoder(model, ROWS, MAX_LENGTH) for _ in range(2)]
    others = np.ones_like(SEGMENTS) if argument == "segment_ids" else np.zeros_like(SPANS)
    first, second = (
        numpy(decoder.prefill(tokens, {argument: ids}))
        for decoder, ids in zip(decoders, (IDS[argument], others), strict=True)
    )
    assert np.abs(first - second).max() > 1e-2


def test_generation_is_that_of_full_passes():
    arguments = ("bidirectional", "segment_ids")
    model = model_of(*arguments, options=OPTIONS["rotary, window"])
    tokens = draw_tokens(ROWS, PROMPT)
    made = ka.generate(model, tokens, 9, inputs=[SPANS, SEGMENTS])
    # What is generated is in no span, so a token sees none of those behind it.
    given = [whole(name, IDS[name], made.shape[1]) for name in arguments]
    full = full_pass(model, *given, made.astype("int32"))
    np.testing.assert_array_equal(made[:, :PROMPT], tokens)
    np.testing.assert_array_equal(made[:, PROMPT:], full[:, PROMPT - 1 : -1].argmax(axis=-1))
    copies = ka.generate(model, tokens, 9, inputs=[SPANS, SEGMENTS], num_return_sequences=2)
    np.testing.assert_array_equal(copies[::2], made)


def test_prompts_of_different_lengths():
    """Padded on the left, as the prompts are: each row is what it is by itself."""
    model = model_of("bidirectional", "segment_ids", options=OPTIONS["chunks"])
    tokens = draw_tokens(ROWS, PROMPT + 2)
    lengths = [4, PROMPT]
    spans, segments = (
        np.stack([np.pad(row[:n], (PROMPT - n, 0)) for row, n in zip(x, lengths, strict=True)])
        for x in (SPANS, SEGMENTS)
    )
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    prompts = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
    found = [decoder.prefill(prompts, [spans, segments]), decoder.step(tokens[:, -1])]
    for row, n in enumerate(lengths):
        alone = np.concatenate([tokens[row, :n], tokens[row, -1:]])[None]
        given = [whole(name, x[row : row + 1, :n], n + 1) for name, x in IDS.items()]
        expected = full_pass(model, *given, alone)[0]
        close(found[0][row], expected[n - 1])
        close(found[1][row], expected[n])


class Own(keras.layers.Layer):
    """Of a user: accepted after a trial, and compared with full passes."""

    def call(self, x):
        return x * 1.1


def test_a_model_that_is_compared_with_full_passes():
    arguments = ("bidirectional", "segment_ids")
    assert_decodes(model_of(*arguments, between=Own()), *arguments)


def test_a_prompt_of_padding_tokens_and_segments():
    """The mask of the embedding and the segments hide keys of the prompt from later tokens."""
    segments = keras.Input((None,), dtype="int32", name="segment_ids")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, FEATURES, mask_zero=True)(tokens)
    x = made({})(x, segment_ids=segments)
    model = with_weights(keras.Model([segments, tokens], layers.Dense(VOCABULARY)(x)))
    given = draw_tokens(ROWS, TOKENS)
    given[given == 0] = 1
    given[:, 5] = 0
    expected = full_pass(model, whole("segment_ids", SEGMENTS, TOKENS), given)
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    close(decoder.prefill(given[:, :PROMPT], SEGMENTS), expected[:, PROMPT - 1])
    for at in range(PROMPT, TOKENS):
        close(decoder.step(given[:, at]), expected[:, at])


def test_infinite_values_of_another_segment_reach_no_step():
    segments = keras.Input((None,), dtype="int32")
    inputs = keras.Input((None, FEATURES))
    model = with_weights(keras.Model([segments, inputs], made({})(inputs, segment_ids=segments)))
    x = np.random.default_rng(2).normal(size=(ROWS, PROMPT + 1, FEATURES)).astype("float32")
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    decoder.prefill(x[:, :PROMPT], SEGMENTS)
    wanted = numpy(decoder.step(x[:, PROMPT]))
    x[0, 1] = np.inf
    decoder.reset()
    decoder.prefill(x[:, :PROMPT], SEGMENTS)
    np.testing.assert_allclose(numpy(decoder.step(x[:, PROMPT])), wanted, rtol=1e-5, atol=1e-5)


def test_the_plan_knows_the_inputs_of_a_prompt():
    model = model_of("bidirectional", "segment_ids", depth=2)
    plan = make_plan(model)
    names = {plan.program.specs[slot].name: x for slot, x in plan.prompt_inputs.items()}
    assert names == {"bidirectional": "bidirectional", "segment_ids": "segment_ids"}
    assert len(plan.prompt_slots) == 2
    assert plan.step_slots == ()
    assert [spec.segmented for spec in plan.specs] == [True, True]
    assert plan.specs[0].keeps_mask
    plain = make_plan(model_of())
    assert plain.per_step == plain.per_token
    moving = plan.program.depends_on(plan.tokens)
    assert prompt_inputs(plan.program, moving) == plan.prompt_inputs
    assert prompt_inputs(plain.program, set()) == {}


def test_the_segments_of_an_encoder_are_not_those_of_the_prompt():
    segments = keras.Input((None,), dtype="int32", name="segments")
    source = keras.Input((None, FEATURES), name="source")
    tokens = keras.Input((None,), dtype="int32")
    memory = ka.MultiHeadAttention(2, 6)(source, segment_ids=segments)
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    x = ka.MultiHeadAttention(2, 6)(made({})(x), memory)
    model = with_weights(keras.Model([segments, source, tokens], layers.Dense(VOCABULARY)(x)))
    encoded = np.random.default_rng(2).normal(size=(ROWS, 5, FEATURES)).astype("float32")
    ids, given = np.array([[1, 1, 2, 2, 0]] * ROWS), draw_tokens(ROWS, TOKENS)
    expected = full_pass(model, ids, encoded, given)
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    assert decoder.plan.prompt_inputs == {}
    close(decoder.prefill(given[:, :PROMPT], [ids, encoded]), expected[:, PROMPT - 1])
    close(decoder.step(given[:, PROMPT]), expected[:, PROMPT])


def test_what_later_tokens_are_given():
    given = np.array([[0, 2, 5]])
    assert extended("bidirectional", given, 5).tolist() == [[0, 2, 5, 0, 0]]
    assert extended("segment_ids", given, 5).tolist() == [[0, 2, 5, 5, 5]]
    assert extended("segment_ids", given, 3).tolist() == [[0, 2, 5]]


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            SEGMENTS[:, :-1],
            r"`segment_ids` of the prompts.*shape \(2, 7\).*Received: shape \(2, 6\)",
        ),
        (SEGMENTS[:1], r"of shape \(2, 7\)"),
        (SEGMENTS + 0.5, "whole numbers"),
        (np.where(SEGMENTS == 9, 0, SEGMENTS), "must not be 0, padding.*row 2 of 2"),
    ],
)
def test_inputs_that_do_not_fit(ids, message):
    decoder = ka.IncrementalDecoder(model_of("segment_ids"), ROWS, MAX_LENGTH)
    with pytest.raises(ValueError, match=message):
        decoder.prefill(draw_tokens(ROWS, PROMPT), ids)


def refused(output, inputs, message):
    with pytest.raises(ValueError, match=message):
        ka.IncrementalDecoder(keras.Model(inputs, output), 1, 8)


def test_ids_that_the_tokens_give_are_refused():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    for name in IDS:
        layer = made({})
        ids = ops.cast(ops.equal(tokens, 3), "int32")
        refused(
            layer(x, **{name: ids}),
            tokens,
            f"'{layer.name}' cannot.*`{name}`, which is not known.*make it an input of the model",
        )


def test_an_input_that_others_read_is_refused():
    ids = keras.Input((None,), dtype="int32", name="kinds")
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    both = made({})(x, bidirectional=ids, segment_ids=ids)
    refused(both, [ids, tokens], "reads the input 'kinds', which is the `.*` of an attention layer")


def test_positions_that_the_tokens_give_are_refused():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    at = ops.multiply(tokens, 2)
    refused(made({})(x, positions=at), tokens, "`positions`, which is not known.*each step")


def test_positions_that_no_cache_keeps_are_refused():
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    at = keras.Input((None, 2), dtype="int32")
    grid = ka.RelativePosition(max_distance=3, axes=2)
    layer = ka.MultiHeadAttention(2, 6, use_causal_mask=True, position=grid)
    refused(layer(x, positions=at), [at, tokens], "compares `positions` of several axes")
    scaling = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
    layer = ka.MultiHeadAttention(
        2, 6, use_causal_mask=True, position=ka.RotaryPosition(scaling=scaling)
    )
    at = keras.Input((None,), dtype="int32")
    refused(layer(x, positions=at), [at, tokens], "the `scaling` of its `position` depends on")


# Positions ------------------------------------------------------------------------------------

TIMES = np.cumsum(np.random.default_rng(5).uniform(0.1, 2.0, (ROWS, TOKENS)), axis=1)
COUNTS = np.array([[0, 3, 4, 5, 9, 10, 11, 14, 15, 20, 21], [2, 1, 0, 3, 4, 8, 6, 9, 10, 11, 30]])
POSITIONED = OPTIONS | {"window": {"sliding_window": 3}, "scale": {"query_scale": "log"}}


def positioned(options, dtype, *arguments, between=lambda x: x, depth=1):
    options = dict(options)
    if "query_scale" in options:
        options["query_scale"] = ka.ScaleByPosition("log", length=3)
    given = {"positions": keras.Input((None,), dtype=dtype, name="times")}
    given |= {name: keras.Input((None,), dtype="int32", name=name) for name in arguments}
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    for _ in range(depth):
        x = between(x + made(options)(x, **given))
    output = layers.Dense(VOCABULARY)(x)
    return with_weights(keras.Model([*given.values(), tokens], output))


def assert_positions_decode(model, at, *arguments):
    tokens, steps = draw_tokens(ROWS, TOKENS), range(PROMPT, TOKENS)
    at = at.astype(model.inputs[0].dtype)
    inputs = {name: IDS[name] for name in arguments}
    expected = full_pass(model, at, *(whole(n, x, TOKENS) for n, x in inputs.items()), tokens)
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    given = {"times": at[:, :PROMPT], **inputs}
    close(decoder.prefill(tokens[:, :PROMPT], given), expected[:, PROMPT - 1])
    for t in steps:
        close(decoder.step(tokens[:, t], at[:, t]), expected[:, t])
    decoder.reset()
    decoder.prefill(tokens[:, :PROMPT], given)
    some = slice(PROMPT, PROMPT + 3)
    close(decoder.step(tokens[:, some], {"times": at[:, some]}), expected[:, some.stop - 1])
    last = some.stop
    close(decoder.step(tokens[:, last], [at[:, last]]), expected[:, last])


@pytest.mark.parametrize("name", POSITIONED)
def test_positions_of_each_step(name):
    model = positioned(POSITIONED[name], "float32")
    assert_positions_decode(model, TIMES)


def test_whole_positions_out_of_order_in_a_prompt():
    assert_positions_decode(positioned(OPTIONS["rotary, window"], "int32", depth=2), COUNTS)


def test_positions_of_packed_sequences_and_spans():
    """They start again in each segment, as `pack_sequences()` has them."""
    at = np.array([[0, 1, 0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]])
    arguments = ("segment_ids", "bidirectional")
    assert_positions_decode(positioned(OPTIONS["relative"], "int32", *arguments), at, *arguments)


def test_positions_compared_with_full_passes():
    assert_positions_decode(positioned({}, "float32", between=Own()), TIMES)


def test_positions_of_prompts_of_different_lengths():
    model = positioned(OPTIONS["alibi"], "float32", between=Own())
    tokens, lengths = draw_tokens(ROWS, PROMPT + 1), [4, PROMPT]
    at = TIMES.astype("float32")
    padded = np.stack(
        [np.pad(row[:n], (PROMPT - n, 0)) for row, n in zip(at, lengths, strict=True)]
    )
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    prompts = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
    later = at[:, PROMPT]
    found = [decoder.prefill(prompts, padded), decoder.step(tokens[:, -1], later)]
    for row, n in enumerate(lengths):
        alone = np.concatenate([tokens[row, :n], tokens[row, -1:]])[None]
        places = np.concatenate([at[row, :n], later[row : row + 1]])[None]
        expected = full_pass(model, places, alone)[0]
        close(found[0][row], expected[n - 1])
        close(found[1][row], expected[n])


def test_positions_that_do_not_fit():
    model = positioned({}, "float32")
    tokens = draw_tokens(ROWS, PROMPT)
    decoder = ka.IncrementalDecoder(model, ROWS, MAX_LENGTH)
    with pytest.raises(ValueError, match=r"'times' is the `positions` of the prompts.*\(2, 7\)"):
        decoder.prefill(tokens, TIMES[:, :3])
    with pytest.raises(ValueError, match="finite"):
        decoder.prefill(tokens, np.full((ROWS, PROMPT), np.nan))
    decoder.prefill(tokens, TIMES[:, :PROMPT])
    with pytest.raises(ValueError, match=r"positions of the new tokens: \['times'\].*None"):
        decoder.step(tokens[:, 0])
    with pytest.raises(ValueError, match=r"`positions` of the new tokens.*\(2, 1\)"):
        decoder.step(tokens[:, 0], np.ones(3))
    with pytest.raises(ValueError, match="greater than those before"):
        decoder.step(tokens[:, 0], np.zeros(ROWS))
    # What was refused has changed nothing.
    at = TIMES[:, : PROMPT + 1].astype("float32")
    expected = full_pass(model, at, np.concatenate([tokens, tokens[:, :1]], axis=1))
    close(decoder.step(tokens[:, 0], TIMES[:, PROMPT]), expected[:, -1])
    counted = ka.IncrementalDecoder(positioned({}, "int32"), ROWS, MAX_LENGTH)
    with pytest.raises(ValueError, match="whole numbers"):
        counted.prefill(tokens, TIMES[:, :PROMPT])
    plain = ka.IncrementalDecoder(model_of(), ROWS, MAX_LENGTH)
    plain.prefill(tokens)
    with pytest.raises(ValueError, match="must be left out"):
        plain.step(tokens[:, 0], TIMES[:, 0])
