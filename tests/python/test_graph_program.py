"""A model as a list of instructions: nested models, the order, and what depends on what."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from backends import tensor, to_numpy
from decoding_models import (
    FEATURES,
    VOCABULARY,
    attending,
    embedded,
    full_pass,
    numpy,
    with_weights,
)
from kerasattention.decoding.graph.program import CastTo, as_graph, flatten_graph

D = 5


def nested_model():
    inner_input = keras.Input((None, D))
    inner = keras.Model(inner_input, layers.Dense(D, name="inner")(inner_input), name="block")
    source, x = keras.Input((None, D), name="source"), keras.Input((None, D), name="x")
    y = inner(x) + layers.Dense(D, name="of_source")(source)
    return keras.Model([source, x], layers.Dense(7, name="last")(inner(y)))


def run(program, *inputs):
    values = dict(zip(program.inputs, inputs, strict=True))
    for instruction in program.instructions:
        args, kwargs = instruction.fill_in(values)
        (slot,) = instruction.outputs
        values[slot] = instruction.operation(*args, **kwargs)
    return to_numpy(values[program.output])


def test_the_instructions_give_what_the_model_gives():
    model = nested_model()
    program = flatten_graph(model)
    assert "block" not in [x.name for x in program.instructions]
    assert sum(x.name == "inner" for x in program.instructions) == 2
    random = np.random.default_rng(2)
    source, x = (tensor(random.normal(size=(2, 3, D))) for _ in range(2))
    expected = to_numpy(model([source, x]))
    np.testing.assert_allclose(run(program, source, x), expected, rtol=1e-6, atol=1e-6)


def test_a_slot_depends_on_what_its_instructions_read():
    program = flatten_graph(nested_model())
    source, x = program.inputs
    by_name = {}
    for instruction in program.instructions:
        by_name.setdefault(instruction.name, []).append(instruction.outputs[0])
    of_source, of_x = program.depends_on(source), program.depends_on(x)
    assert by_name["of_source"][0] in of_source - of_x
    assert by_name["inner"][0] in of_x - of_source
    assert program.output in of_x & of_source


def test_inputs_of_a_nested_model_are_cast_to_its_dtype():
    inner_input = keras.Input((None,), dtype="float32")
    inner = keras.Model(inner_input, ops.expand_dims(inner_input, -1))
    ids = keras.Input((None,), dtype="int32")
    program = flatten_graph(keras.Model(ids, inner(ids)))
    assert [type(x.operation) for x in program.instructions].count(CastTo) == 1
    assert run(program, tensor(np.array([[3, 1]]))).dtype == "float32"


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_other_models_than_graphs_are_refused():
    assert as_graph(Subclassed()) is None
    assert as_graph(layers.Dense(2)) is None
    x = keras.Input((None, D))
    for model, reason in (
        (Subclassed(), "Functional or Sequential"),
        (keras.Sequential([layers.Dense(2)]), "not built"),
        (keras.Model(x, [x + 1.0, x + 2.0]), "Received: 2 outputs"),
    ):
        with pytest.raises(ValueError, match=reason):
            flatten_graph(model)


@pytest.mark.filterwarnings("ignore:Layer .* does not support masking")  # Keras's own
@pytest.mark.parametrize("length", [None, 23])
def test_a_nested_model_gets_the_mask_that_it_is_called_with(length):
    """Keras passes the mask of an embedding as an argument; steps must see the masked tokens."""
    keras.utils.set_random_seed(3)
    inner = keras.Input((length, FEATURES))
    y = attending(position=ka.RotaryPosition())(layers.ReLU()(inner))
    nested = keras.Model(inner, attending()(layers.LayerNormalization()(y)))
    tokens, x = embedded(length, mask_zero=True)
    model = with_weights(keras.Model(tokens, layers.Dense(VOCABULARY)(nested(x))))
    for each in (model, keras.models.clone_model(model)):
        each.set_weights(model.get_weights())
        prompt = np.array([[5, 0, 3, 9, 0, 0, 7, 2], [1, 4, 0, 0, 8, 6, 0, 11]], "int32")
        decoder = ka.IncrementalDecoder(each, 2, 23)
        assert decoder.plan.tried == ()
        found = [numpy(decoder.prefill(prompt[:, :4]))]
        found += [numpy(decoder.step(prompt[:, at])) for at in range(4, 8)]
        whole = np.pad(prompt, [(0, 0), (0, 15)])
        expected = full_pass(model, whole)[:, 3:8]
        np.testing.assert_allclose(np.stack(found, axis=1), expected, atol=2e-5)
        unmasked = full_pass(model, np.where(whole == 0, 12, whole))[:, 3:8]
        assert abs(unmasked - expected).max() > 0.1
