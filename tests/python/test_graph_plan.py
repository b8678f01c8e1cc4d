"""Plans of decoding: what runs once per prompt, what per token, and what each call caches."""

import keras
import pytest
from keras import layers, ops

import kerasattention as ka
from decoding_models import FEATURES, VOCABULARY, attending, embedded, model_of
from kerasattention.decoding.graph.plan import Execution, make_plan


def with_encoder(softmax=False):
    source = keras.Input((None, FEATURES), name="source")
    encoded = layers.Dense(FEATURES, name="encoder")(source)
    tokens, x = embedded()
    x = attending(sliding_window=3, name="own")(x)
    x = x + ka.MultiHeadAttention(2, 5, name="other")(x, encoded)
    x = layers.Dense(FEATURES, name="late")(x)
    activation = "softmax" if softmax else None
    return keras.Model([source, tokens], layers.Dense(VOCABULARY, activation=activation)(x))


def test_an_encoder_runs_per_prompt_and_the_rest_per_token():
    plan = make_plan(with_encoder())
    assert [x.name for x in plan.per_prompt] == ["encoder"]
    names = [x.name for x in plan.per_token]
    assert {"own", "other", "late"} <= set(names)
    # Behind the last attention layer only the last token is needed.
    assert names[plan.tail - 1] == "other"
    assert set(plan.executions) == {Execution.DIRECT}
    assert not plan.by_index
    assert plan.prompt_slots == plan.per_prompt[0].outputs
    assert plan.other_inputs == plan.program.inputs[:1]
    assert plan.vocabulary(plan.tokens) == VOCABULARY
    assert plan.tried == ()


def test_each_call_of_an_attention_layer_has_its_caches():
    own, other = make_plan(with_encoder()).specs
    assert (own.layer, own.kv_heads, own.key_size, own.window) == ("own", 2, 6, 3)
    assert not own.cross
    assert (other.layer, other.kv_heads, other.value_size, other.window) == ("other", 2, 5, None)
    assert other.cross


def test_probabilities_are_told_from_logits():
    assert make_plan(with_encoder(softmax=True)).probabilities
    assert not make_plan(with_encoder()).probabilities


def test_the_token_input_is_chosen_by_name_or_index():
    assert make_plan(with_encoder(), "tokens").tokens == make_plan(with_encoder(), 1).tokens
    for wrong in ("nobody", 2):
        with pytest.raises(ValueError, match=r"`token_input` must name one of the inputs"):
            make_plan(with_encoder(), wrong)


def test_a_model_of_one_length_has_that_length():
    assert make_plan(model_of(attending(), length=7)).static_length == 7
    assert make_plan(model_of(attending())).static_length is None


def test_a_layer_that_reads_indices_runs_on_the_full_length():
    table = ops.reshape(ops.arange(7, dtype="float32"), (1, 7, 1))

    def with_table(x):
        return layers.Lambda(lambda y: y + table, name="own")(attending()(x))

    plan = make_plan(model_of(with_table, length=7))
    names = [x.name for x in plan.per_token]
    assert plan.executions[names.index("own")] is Execution.AT_INDEX
    assert plan.by_index
    assert plan.tried == ("own",)
