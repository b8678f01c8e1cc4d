"""Token ids, other inputs, sizes and logits that cannot be right are errors, not wrong tokens."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from decoding_models import FEATURES, VOCABULARY, attending, embedded, model_of, numpy


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return model_of(attending())


BAD_IDS = {
    "beyond int32": 2**32 + 1,
    "beyond the vocabulary": VOCABULARY,
    "negative": -1,
    "a large float": 1e12,
    "infinite": np.inf,
    "NaN": np.nan,
    "a fraction": 1.5,
}


@pytest.mark.parametrize("name", BAD_IDS)
def test_ids_that_the_model_does_not_know_are_errors(model, name):
    bad = BAD_IDS[name]
    decoder = ka.IncrementalDecoder(model, 1, 8)
    rule = rf"`tokens` must be token ids: whole numbers from 0 to .*{str(bad)[:4]}"
    with pytest.raises(ValueError, match=rule):
        ka.generate(model, np.array([[bad, 2]]), 2)
    with pytest.raises(ValueError, match=rule):
        decoder.prefill(np.array([[bad, 2]]))
    decoder.prefill([[1, 2]])
    with pytest.raises(ValueError, match=rule):
        decoder.step(np.array([bad]))
    assert decoder.length == 2
    assert ka.generate(model, [VOCABULARY - 1.0, 2.0], 1).shape == (3,)


def test_prompts_that_are_tensors_give_the_tokens_of_the_array(model):
    prompts = np.array([[1, 2, 3], [5, 7, 11]], "int32")
    expected = ka.generate(model, prompts, 5)
    tensor = ops.convert_to_tensor(prompts, dtype="int32")
    # Whole numbers up to 256 are exact in bfloat16, which NumPy does not have.
    short = ops.convert_to_tensor(prompts, dtype="bfloat16")
    for given in (tensor, list(tensor), short, list(short)):
        np.testing.assert_array_equal(ka.generate(model, given, 5), expected)
    decoder = ka.IncrementalDecoder(model, 2, 8)
    logits = [numpy(decoder.prefill(prompts)), numpy(decoder.step(expected[:, 3]))]
    for given, dtype in ((tensor, "int32"), (list(tensor), "int32"), (list(short), "bfloat16")):
        decoder.reset()
        np.testing.assert_array_equal(numpy(decoder.prefill(given)), logits[0])
        step = ops.convert_to_tensor(expected[:, 3], dtype=dtype)
        np.testing.assert_array_equal(numpy(decoder.step(step)), logits[1])


def test_features_may_be_a_list_of_tensors_of_one_length():
    features = keras.Input((None, FEATURES))
    attended = keras.Model(features, attending()(features))
    decoder = ka.IncrementalDecoder(attended, 2, 8)
    prompts = np.random.default_rng(1).normal(size=(2, 3, FEATURES)).astype("float32")
    expected = numpy(decoder.prefill(prompts))
    decoder.reset()
    found = numpy(decoder.prefill([ops.convert_to_tensor(row) for row in prompts]))
    np.testing.assert_array_equal(found, expected)


def test_other_inputs_that_are_tensors_are_repeated():
    tokens, x = embedded()
    source = keras.Input((None, 5), name="source")
    x = ka.GroupQueryAttention(6, 4, 2)(attending()(x), source)
    model_of_two = keras.Model([source, tokens], layers.Dense(VOCABULARY)(x))
    given = np.arange(15, dtype="float32").reshape(1, 3, 5)
    expected = ka.generate(model_of_two, [[1, 2]], 3, inputs=[given], num_return_sequences=2)
    for inputs in (ops.convert_to_tensor(given, dtype="bfloat16"), {"source": given}):
        found = ka.generate(model_of_two, [[1, 2]], 3, inputs=inputs, num_return_sequences=2)
        np.testing.assert_array_equal(found, expected)


def test_an_input_of_floats_that_an_embedding_reads_is_checked_too():
    tokens = keras.Input((None,))
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    floats = keras.Model(tokens, layers.Dense(VOCABULARY)(attending()(x)))
    with pytest.raises(ValueError, match=f"from 0 to {VOCABULARY - 1}.*Received: {VOCABULARY}"):
        ka.generate(floats, [1, VOCABULARY], 2)


def test_stop_tokens_do_not_wrap_round(model):
    with pytest.raises(ValueError, match=r"`stop_token` must be .*4294967297"):
        ka.generate(model, [1, 2], 6, stop_token=2**32 + 1)
    with pytest.raises(ValueError, match="`stop_token`"):
        ka.generate(model, [1, 2], 6, stop_token=2**70)


def test_other_inputs_are_checked_by_name_and_shape(model):
    with pytest.raises(ValueError, match=r"`inputs` must be left out.*\['nonsense'\]"):
        ka.generate(model, [1, 2], 2, inputs={"nonsense": 1})
    with pytest.raises(ValueError, match=r"`inputs` must be left out.*Received: \['2 inputs'\]"):
        ka.generate(model, [1, 2], 2, inputs=[1, 2])
    source = keras.Input((None, 5), name="source")
    tokens, x = embedded()
    x = x + ka.GroupQueryAttention(6, 4, 2)(attending()(x), source)
    decoder = ka.IncrementalDecoder(
        keras.Model([source, tokens], layers.Dense(VOCABULARY)(x)), 2, 8
    )
    given = np.zeros((2, 3, 5), "float32")
    for inputs, message in (
        ({"source": given, "sauce": given}, r"Received: \['sauce'\]"),
        ({"sauce": given}, r"Missing: \['source'\]"),
        ([given, given], r"'source' must have shape \(2, t, 5\). Received: shape \(2, 2, 3, 5\)"),
        ([given[:1]], r"'source' must have shape \(2, t, 5\). Received: shape \(1, 3, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.prefill([[1, 2], [3, 4]], inputs)
    decoder.prefill([[1, 2], [3, 4]], [given])


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2**31 - 1}])
def test_sizes_that_no_memory_holds_are_refused_at_once(model, options):
    count = 3 if options else 2**31 - 9
    with pytest.raises(ValueError, match="GiB of caches"):
        ka.generate(model, [1, 2], count, **options)


def test_a_decoder_of_a_size_that_no_memory_holds_is_refused_at_once(model):
    for size in ((2**31 - 1, 8), (1, 2**40)):
        with pytest.raises(ValueError, match="GiB of caches"):
            ka.IncrementalDecoder(model, *size)


@pytest.mark.parametrize("temperature", [1e-10, 1e-30, 1e-45, 1e-300, 5e-324])
def test_tiny_temperatures_are_greedy(model, temperature):
    prompts = np.array([[1, 2], [3, 5], [7, 11]])
    expected = ka.generate(model, prompts, 9)
    for options in ({}, {"top_k": 5}, {"top_p": 0.9}):
        found = ka.generate(model, prompts, 9, temperature, seed=1, **options)
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def chain():
    """A model whose table of logits each test sets, so that its loops are compiled once."""
    tokens, _ = embedded()
    return keras.Model(tokens, layers.Embedding(VOCABULARY, VOCABULARY)(tokens))


def bias(chain, at, value):
    """Makes it choose token t + 1 after t; the logits after token `at` are `value`."""
    table = np.roll(np.eye(VOCABULARY, dtype="float32"), 1, axis=1)
    table[at] = value
    chain.set_weights([table])


DRAWN = {"greedy": {}, "drawn": {"temperature": 0.01}, "top k": {"temperature": 0.01, "top_k": 3}}
DRAWN["top p"] = {"temperature": 0.01, "top_p": 0.5}


UNUSABLE = {"NaN": np.where(np.arange(VOCABULARY) == 3, np.nan, 0), "all -Inf": -np.inf}


@pytest.mark.parametrize("name", UNUSABLE)
def test_logits_that_no_token_can_be_chosen_from_name_the_step(chain, name):
    bias(chain, 7, UNUSABLE[name])
    for start, step in ((7, 1), (6, 2), (3, 5)):
        with pytest.raises(ValueError, match=f"logits for new token {step} are NaN"):
            ka.generate(chain, [[start], [start]], 9)
    for options in DRAWN.values():
        with pytest.raises(ValueError, match=r"logits for new token [12] are NaN"):
            ka.generate(chain, [[6], [6]], 9, seed=1, **options)


@pytest.mark.parametrize("name", DRAWN)
def test_an_infinite_logit_is_the_likeliest(chain, name):
    row = np.zeros(VOCABULARY)
    row[5] = np.inf
    bias(chain, range(VOCABULARY), row)
    found = ka.generate(chain, [[3], [2]], 9, seed=1, **DRAWN[name])
    np.testing.assert_array_equal(found, [[3, *[5] * 9], [2, *[5] * 9]])
