"""Which layers are known to act per position, and which are known not to."""

import keras
import pytest
from keras import layers, ops

import kerasattention as ka
from decoding_models import FEATURES, VOCABULARY, embedded
from kerasattention.decoding.graph import layer_support
from kerasattention.decoding.graph.program import flatten_graph

T = 7


def last_call(operation, length=None):
    """The last instruction of a model, the slots that depend on the tokens, and the program."""
    tokens, x = embedded(length)
    program = flatten_graph(keras.Model(tokens, operation(x)))
    return program.instructions[-1], program.depends_on(program.inputs[0]), program


PER_POSITION = {
    "Dense": layers.Dense(3),
    "dropout": layers.Dropout(0.5),
    "norm of features": layers.LayerNormalization(),
    "sum": lambda x: x + x,
    "product with features": lambda x: x * ops.ones((FEATURES,)),
    "concatenated features": lambda x: layers.Concatenate()([x, x]),
    "activation of Keras": layers.Dense(3, activation="gelu"),
    "operation": ops.tanh,
}
NOT_KNOWN = {
    "norm over time": layers.LayerNormalization(axis=1),
    "norm of both": layers.LayerNormalization(axis=(1, 2)),
    "a table of positions": lambda x: x + ops.ones((T, FEATURES)),
    "concatenated time": lambda x: layers.Concatenate(axis=1)([x, x]),
    "an activation of the user": layers.Dense(3, activation=lambda x: ops.cumsum(x, axis=1)),
    "Lambda": layers.Lambda(lambda x: x),
    "softmax over time": lambda x: ops.softmax(x, axis=1),
}


@pytest.mark.parametrize("name", PER_POSITION)
def test_layers_that_act_per_position_are_known(name):
    assert layer_support.acts_per_position(*last_call(PER_POSITION[name], T))


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_other_layers_need_a_trial(name):
    assert not layer_support.acts_per_position(*last_call(NOT_KNOWN[name], T))


def test_layers_over_time_are_refused_with_their_reason():
    for layer, reason in (
        (layers.LSTM(3, return_sequences=True, name="culprit"), "recurrent"),
        (layers.Conv1D(3, 2, padding="causal", name="culprit"), "convolves over time"),
        (layers.GroupNormalization(2, name="culprit"), "normalises over time"),
    ):
        with pytest.raises(ValueError, match=rf"'culprit' cannot be decoded.*{reason}"):
            layer_support.refuse_known(last_call(layer, T)[0])
    layer_support.refuse_known(last_call(layers.Conv1D(3, 1), T)[0])


def test_a_result_without_the_time_axis_is_refused():
    with pytest.raises(ValueError, match="has not the tokens' time axis second"):
        layer_support.refuse_shape(last_call(lambda x: ops.mean(x, axis=1), T)[0], T)


def test_ids_are_limited_by_the_smallest_embedding_that_reads_them():
    tokens, x = embedded()
    x = x + layers.Embedding(VOCABULARY - 6, FEATURES)(tokens)
    program = flatten_graph(keras.Model(tokens, x))
    assert layer_support.vocabulary(program, program.inputs[0]) == VOCABULARY - 6
    assert layer_support.vocabulary(program, program.output) is None


def test_attention_of_the_package_is_known_and_derived_classes_are_not():
    class Derived(ka.MultiHeadAttention):
        pass

    assert layer_support.is_our_attention(ka.MultiHeadAttention(2, 3))
    assert not layer_support.is_our_attention(Derived(2, 3))
    assert not layer_support.is_our_attention(layers.Dense(2))
    assert layer_support.holds_attention(layers.TimeDistributed(ka.MultiHeadAttention(2, 3)))
