"""Products of layers on torch: in blocks of columns and of int8, with the layers' own results."""

import keras
import numpy as np
import pytest
import torch
from keras import layers

import kerasattention as ka
from decoding_models import attending, draw_tokens, full_pass, model_of, next_logits, numpy
from kerasattention._keras import flatten_layers, override_calls
from kerasattention.decoding.backends import products_torch
from kerasattention.decoding.backends.products import linear_layers, summed_axes

SUBSCRIPTS = {
    "btd,dnh->btnh": 1,
    "btnh,nhd->btd": 2,
    "ab,bc->ac": 1,
    "abc, cd -> abd": 1,
    "btnh,hnd->btd": None,  # the axes do not come in the same order
    "ab,bc->ca": None,
    "ab,cb->ac": None,
    "ab,ab->": 2,
    "ab,cd->abcd": None,
    "ab,bc": None,
    "bqd,bkd->bqk": None,
}


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_subscripts_of_one_product_are_known(subscripts):
    assert summed_axes(subscripts) == SUBSCRIPTS[subscripts]


@pytest.fixture
def two_threads():
    """So that there are columns to divide on any machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


class Nested(layers.Layer):
    """A layer of a user, with a product inside."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(256, activation="tanh")

    def call(self, x):
        return self.dense(x)


LAYERS = {
    "dense": lambda: layers.Dense(256, activation="relu", bias_initializer="normal"),
    "heads": lambda: layers.EinsumDense("btd,dnh->btnh", (None, 8, 32), bias_axes="nh"),
    "from heads": lambda: keras.Sequential(
        [layers.Reshape((-1, 4, 6)), layers.EinsumDense("btnh,nhd->btd", (None, 256))]
    ),
    "nested": Nested,
    "another order": lambda: layers.EinsumDense("btd,hd->bth", (None, 256)),
}


def built(name, quantized=False):
    keras.utils.set_random_seed(3)
    layer = LAYERS[name]()
    model = keras.Sequential([keras.Input((None, 24)), layer])
    for part in flatten_layers(model) if quantized else ():
        if isinstance(part, (layers.Dense, layers.EinsumDense)):
            part.quantize("int8")
    return model


def called(model, x, products):
    with torch.inference_mode(), override_calls(products.overrides):
        return numpy(model(x))


@pytest.mark.parametrize("rows", [1, 3, 16, 17])
@pytest.mark.parametrize("name", LAYERS)
def test_products_of_few_rows_are_taken_in_columns(name, rows, two_threads, monkeypatch):
    monkeypatch.setattr(products_torch, "LEAST_NUMBERS", 24 * 256)
    multiplied = []
    multiply = products_torch.multiply_in_columns
    monkeypatch.setattr(
        products_torch,
        "multiply_in_columns",
        lambda columns, x: multiplied.append(x.shape[0]) or multiply(columns, x),
    )
    model = built(name)
    products = products_torch.torch_products(linear_layers(model))
    x = np.random.default_rng(1).normal(size=(1, rows, 24)).astype("float32")
    for _ in range(2):
        np.testing.assert_allclose(called(model, x, products), numpy(model(x)), atol=2e-5)
        for weight in model.weights:
            weight.assign(-2 * weight)  # in place, as an optimizer does it
    assert multiplied == ([rows] * 2 if rows <= 16 and name != "another order" else [])


def test_tied_logits_are_taken_in_columns(two_threads, monkeypatch):
    monkeypatch.setattr(products_torch, "LEAST_NUMBERS", 0)
    layer = layers.ReversibleEmbedding(256, 24)
    tokens = keras.Input((None,), dtype="int32")
    model = keras.Model(tokens, layer(layer(tokens), reverse=True))
    products = products_torch.torch_products(linear_layers(model))
    assert list(products.overrides) == [id(layer)]
    given = draw_tokens(1, 3)
    np.testing.assert_allclose(called(model, given, products), numpy(model(given)), atol=2e-5)


def test_small_weights_one_thread_and_other_layers_keep_their_products(two_threads, monkeypatch):
    assert not products_torch.torch_products(linear_layers(built("dense"))).overrides
    monkeypatch.setattr(products_torch, "LEAST_NUMBERS", 0)
    model = built("dense")
    assert len(products_torch.torch_products(linear_layers(model)).overrides) == 1
    torch.set_num_threads(1)
    assert not products_torch.torch_products(linear_layers(model)).overrides
    model.layers[-1].enable_lora(2)
    assert not linear_layers(model)

    class Mine(layers.Dense):
        pass

    assert not linear_layers(keras.Sequential([keras.Input((None, 24)), Mine(256)]))


def test_blocks_of_columns_are_equal_and_wide():
    count_blocks = products_torch.count_blocks
    assert count_blocks(576, threads=2) == 4
    assert count_blocks(576, threads=16) == 9  # of 64 columns each
    assert count_blocks(192, threads=2) == 3
    assert count_blocks(49152, threads=8) == 16
    assert count_blocks(100, threads=8) == 1
    assert count_blocks(257, threads=8) == 1  # a prime
    assert count_blocks(576, threads=1) == 1


# int8 -----------------------------------------------------------------------------------


@pytest.fixture
def int8_products(monkeypatch):
    """As on a processor that has instructions for them; the numbers of rows multiplied."""
    rows = []
    multiply = products_torch.multiply_in_int8
    monkeypatch.setattr(products_torch, "has_int8_products", lambda: True)
    monkeypatch.setattr(
        products_torch,
        "multiply_in_int8",
        lambda linear, matrix, x: rows.append(x.shape[0]) or multiply(linear, matrix, x),
    )
    return rows


@pytest.mark.parametrize("name", LAYERS)
def test_int8_layers_give_the_same_numbers(name, int8_products):
    model = built(name, quantized=True)
    products = products_torch.torch_products(linear_layers(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 24)).astype("float32")
    np.testing.assert_array_equal(called(model, x, products), numpy(model(x)))
    assert int8_products == ([] if name == "another order" else [10])


def quantized():
    keras.utils.set_random_seed(1)
    model = model_of(attending(position=ka.RotaryPosition()))
    model.quantize("int8")
    return model


def test_int8_is_multiplied_as_int8_at_prefill_and_in_steps(int8_products):
    model, tokens = quantized(), draw_tokens()
    decoder = ka.IncrementalDecoder(model, *tokens.shape)
    made = [numpy(decoder.prefill(tokens[:, :3]))]
    assert int8_products == [9] * 4 + [3]  # logits of the last token only
    made += [numpy(decoder.step(tokens[:, at])) for at in range(3, tokens.shape[1])]
    names = [str(node.target) for node in decoder._runner._trace.graph.nodes]
    assert "aten._int_mm.default" in names
    assert "aten.mm.default" not in names
    # A rounding of an activation may fall to the other side.
    expected = full_pass(model, tokens)[:, 2:].swapaxes(0, 1)
    np.testing.assert_allclose(made, expected, atol=0.05)
    np.testing.assert_allclose(np.median(np.abs(made - expected)), 0, atol=1e-5)


def test_a_changed_int8_weight_is_seen(int8_products):
    model, tokens = quantized(), draw_tokens()
    decoder = ka.IncrementalDecoder(model, *tokens.shape)
    decoder.prefill(tokens[:, :2])
    for at in range(2, 8):
        decoder.step(tokens[:, at])
    assert decoder._runner._trace is not None
    dense = next(x for x in model.layers if isinstance(x, layers.Dense))
    dense._kernel.assign(-dense._kernel)
    for at in range(8, 10):  # the caches hold what does not depend on this weight
        found = numpy(decoder.step(tokens[:, at]))
        expected = next_logits(model, tokens[:, : at + 1], tokens.shape[1])
        np.testing.assert_allclose(np.median(np.abs(found - expected)), 0, atol=1e-5)


def test_without_instructions_int8_is_left_to_keras(monkeypatch):
    monkeypatch.setattr(products_torch, "has_int8_products", lambda: False)
    assert not products_torch.torch_products(linear_layers(quantized())).overrides


def test_an_override_holds_for_its_own_context_only(two_threads, monkeypatch):
    model, x = built("dense"), np.ones((1, 2, 24), "float32")
    own = numpy(model(x))
    products = products_torch.TorchProducts({id(model.layers[0]): lambda call, y: call(y) + 1}, [])
    np.testing.assert_array_equal(called(model, x, products), own + 1)
    np.testing.assert_array_equal(numpy(model(x)), own)


def test_a_layer_is_compiled_as_before_when_nothing_is_overridden():
    layer = built("dense").layers[0]
    with override_calls({}):
        pass
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(lambda x: layer.call(x), backend="eager")
    x = torch.ones(2, 24)
    torch.testing.assert_close(compiled(x), layer.call(x))
    assert not torch._dynamo.utils.counters["graph_break"]
