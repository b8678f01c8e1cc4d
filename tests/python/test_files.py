"""Models with our layers as models: policies, quantisation, LoRA, copies, files, training.

Weight files shared with Keras's layers are in `test_weight_files.py`.
"""

import copy
import pickle

import keras
import numpy as np
import pytest

import backends
import kerasattention
from backends import BACKEND, JIT, tensor, to_numpy
from kerasattention import GroupQueryAttention, MultiHeadAttention, RelativePosition
from layer_twins import KINDS, randomize

B, T, D, N, H = 3, 5, 14, 2, 8
BOTH = pytest.mark.parametrize("kind", ["mha", "gqa"])


def layer_of(kind, **options):
    if kind == "mha":
        return MultiHeadAttention(N, H, **options)
    return GroupQueryAttention(H, 2 * N, N, **options)


def model_of(kind, **options):
    inputs = keras.Input((T, D))
    layer = layer_of(kind, use_gate=True, **options)
    model = keras.Model(inputs, keras.layers.Dense(3)(layer(inputs, use_causal_mask=True)))
    randomize(layer)
    return model


def numbers(count=B):
    return np.random.default_rng(3).normal(size=(count, T, D)).astype("float32")


def predicted(model):
    return backends.predicted(model, numbers())


def reloaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


@keras.saving.register_keras_serializable(package="test_files")
class Subclassed(keras.Model):
    """A model that is no graph of layers."""

    def __init__(self, ours=True, kind="MultiHeadAttention", **kwargs):
        super().__init__(**kwargs)
        self.ours, self.kind = ours, kind
        options = {
            "MultiHeadAttention": {"num_heads": N, "key_dim": H},
            "GroupQueryAttention": {
                "head_dim": H,
                "num_query_heads": 2 * N,
                "num_key_value_heads": N,
            },
        }
        self.attention = KINDS[kind][ours](
            dropout=0.1, bias_initializer="random_normal", use_gate=True, **options[kind]
        )
        self.head = keras.layers.Dense(3)

    def call(self, x, training=None):
        return self.head(self.attention(x, x, training=training))

    def get_config(self):
        return {**super().get_config(), "ours": self.ours, "kind": self.kind}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_subclassed_models_go_both_ways(kind, tmp_path):
    theirs, ours, fresh = Subclassed(False, kind), Subclassed(True, kind), Subclassed(False, kind)
    for model in (theirs, ours, fresh):
        model(tensor(numbers()))
    expected = predicted(theirs)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    np.testing.assert_allclose(predicted(ours), expected, atol=1e-5)
    ours.save_weights(tmp_path / "ours.weights.h5")
    fresh.load_weights(tmp_path / "ours.weights.h5")
    np.testing.assert_allclose(predicted(fresh), expected, atol=1e-5)
    np.testing.assert_allclose(predicted(reloaded(ours, tmp_path)), expected, atol=1e-5)


@BOTH
@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantised_models_give_the_same_numbers_when_reloaded(kind, mode, tmp_path):
    model = model_of(kind)
    before = predicted(model)
    model.quantize(mode)
    after = predicted(model)
    # float8 has no scales before it was trained.
    worst = {"int8": 0.03, "int4": 0.5, "float8": 1.0}[mode]
    assert np.abs(after - before).max() < worst * np.abs(before).max()
    again = reloaded(model, tmp_path)
    np.testing.assert_allclose(predicted(again), after, atol=1e-6)
    # And once more: what was loaded knows that it is quantised.
    np.testing.assert_allclose(predicted(reloaded(again, tmp_path)), after, atol=1e-6)


@BOTH
def test_a_quantised_model_keeps_tables_and_norms_and_does_not_warn_of_them(kind, tmp_path):
    model = model_of(kind, position=RelativePosition(4, 7), qk_norm=True)
    layer = model.layers[1]
    table = to_numpy(layer.position.table)
    model.quantize("int8")
    np.testing.assert_array_equal(to_numpy(layer.position.table), table)
    np.testing.assert_allclose(predicted(reloaded(model, tmp_path)), predicted(model), atol=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_policies_of_low_precision(kind, dtype, tmp_path):
    wide, low = model_of(kind), model_of(kind, dtype=dtype)
    low.set_weights(wide.get_weights())
    layer = low.layers[1]
    assert layer(tensor(numbers())).dtype == layer(tensor(numbers()), training=True).dtype
    assert keras.backend.standardize_dtype(layer(tensor(numbers())).dtype) == layer.compute_dtype
    wanted = predicted(wide)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(predicted(low) / scale, wanted / scale, atol=0.05)
    np.testing.assert_allclose(predicted(reloaded(low, tmp_path)), predicted(low), atol=1e-6)


@BOTH
def test_quantised_models_with_a_policy_map_reload(kind, tmp_path):
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    policies["attention/value"] = "bfloat16"
    model = model_of(kind, dtype=policies, name="attention")
    model.quantize("int8")
    again = reloaded(model, tmp_path)
    assert [w.dtype for w in again.weights] == [w.dtype for w in model.weights]
    assert again.layers[1].projection("key").quantization_mode == "int8"
    np.testing.assert_allclose(predicted(again), predicted(model), atol=1e-6)


@BOTH
def test_dtype_policy_maps(kind, tmp_path):
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    policies["attention/query"] = "bfloat16"
    policies["attention/attention_output"] = "mixed_bfloat16"
    model = model_of(kind, dtype=policies, name="attention")
    layer = model.layers[1]
    dtypes = {w.path.split("/", 1)[1]: w.dtype for w in layer.weights}
    assert dtypes["query/kernel"] == "bfloat16"
    assert dtypes["key/kernel"] == dtypes["attention_output/kernel"] == "float32"
    again = reloaded(model, tmp_path)
    assert [w.dtype for w in again.weights] == [w.dtype for w in model.weights]
    np.testing.assert_allclose(predicted(again), predicted(model), atol=1e-6)


# A file has LoRA's factors merged into the kernels: the optimizer's state is not of those weights.
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")
@BOTH
@pytest.mark.parametrize("quantised", [False, True])
def test_lora_trains_and_reloads(kind, quantised, tmp_path):
    model = model_of(kind)
    layer = model.layers[1]
    if quantised:
        model.quantize("int8")
    untouched = predicted(model)
    for name in ("query", "key", "value", "output"):
        layer.projection(name).enable_lora(2)
    np.testing.assert_allclose(predicted(model), untouched, atol=1e-5)
    trainable = {w.path.split("/")[-1] for w in layer.trainable_weights}
    assert {"lora_kernel_a", "lora_kernel_b"} <= trainable
    model.compile("adam", "mse", jit_compile=JIT)
    model.fit(numbers(), np.ones((B, T, 3)), epochs=2, verbose=0)
    trained = predicted(model)
    assert np.abs(trained - untouched).max() > 1e-4
    # Keras merges the factors when it saves, rounding to int8 once more.
    tolerance = 0.03 * np.abs(trained).max() if quantised else 1e-5
    again = reloaded(model, tmp_path)
    np.testing.assert_allclose(predicted(again), trained, atol=tolerance)


@BOTH
def test_copies_of_a_model(kind):
    model = model_of(kind, dropout=0.2)
    expected = predicted(model)
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    for other in (cloned, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(predicted(other), expected, atol=1e-6)
        assert other.layers[1] is not model.layers[1]
        assert other.layers[1].get_config() == model.layers[1].get_config()


@BOTH
def test_copy_of_an_unbuilt_layer(kind):
    layer = layer_of(kind, seed=3, dropout=0.1)
    assert copy.deepcopy(layer).get_config() == layer.get_config()


@BOTH
@pytest.mark.parametrize("jit", [False, True] if BACKEND == "tensorflow" else ["auto"])
def test_training_reaches_what_it_is_shown(kind, jit):
    keras.utils.set_random_seed(1)
    model = model_of(kind, dropout=0.1)
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit)
    targets = np.random.default_rng(1).normal(size=(B, T, 3))
    before = model.evaluate(numbers(), targets, verbose=0)
    model.fit(numbers(), targets, epochs=30, batch_size=2, verbose=0)
    assert model.evaluate(numbers(), targets, verbose=0) < 0.3 * before


@BOTH
def test_frozen_weights_stay(kind):
    model = model_of(kind)
    layer = model.layers[1]
    layer.trainable = False
    before = layer.get_weights()
    assert layer.trainable_weights == []
    model.compile("sgd", "mse", jit_compile=JIT)
    model.fit(numbers(), np.ones((B, T, 3)), verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@BOTH
def test_summary_counts_parameters_and_shows_the_shape(kind):
    lines = []
    model = model_of(kind)
    model.summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert f"{model.layers[1].count_params():,}" in text
    assert f"(None, {T}, {D})" in text


@BOTH
def test_sequential_keeps_the_causal_default(kind, tmp_path):
    layer = layer_of(kind, use_causal_mask=True)
    model = keras.Sequential([keras.Input((T, D)), layer, keras.layers.Dense(3)])
    expected = predicted(model)
    x = numbers()
    x[:, -1] += 10.0
    np.testing.assert_allclose(
        backends.predicted(model, x)[:, :-1], expected[:, :-1], rtol=1e-5, atol=1e-6
    )
    again = reloaded(model, tmp_path)
    assert again.layers[0].use_causal_mask is True
    np.testing.assert_allclose(predicted(again), expected, atol=1e-6)


@BOTH
def test_time_distributed(kind):
    layer = layer_of(kind)
    wrapped = keras.layers.TimeDistributed(layer)
    x = np.random.default_rng(1).normal(size=(B, 7, T, D)).astype("float32")
    output = to_numpy(wrapped(tensor(x)))
    for step in range(7):
        np.testing.assert_allclose(output[:, step], to_numpy(layer(tensor(x[:, step]))), atol=1e-5)


@BOTH
def test_keras_wrappers_and_containers(kind):
    """A layer inside a layer inside a functional model, its own weights found."""

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.attention = layer_of(kind)

        def call(self, x):
            return x + self.attention(x)

    inputs = keras.Input((None, D))
    model = keras.Model(inputs, Block()(inputs))
    assert len(model.trainable_weights) == 8
    assert model(tensor(numbers())).shape == (B, T, D)
    assert model(tensor(numbers()[:2, :3])).shape == (2, 3, D)


if BACKEND != "torch":  # Keras exports no SavedModel from torch

    @BOTH
    def test_exported_models_give_the_same_numbers(kind, tmp_path):
        import tensorflow as tf

        model = model_of(kind)
        model.export(str(tmp_path / "exported"), verbose=False)
        served = tf.saved_model.load(str(tmp_path / "exported"))
        np.testing.assert_allclose(served.serve(numbers()).numpy(), predicted(model), atol=1e-5)


def test_plain_files_of_keras_stay_keras(tmp_path):
    inputs = keras.Input((T, D))
    saved = keras.Model(inputs, keras.layers.MultiHeadAttention(N, H)(inputs, inputs))
    assert type(reloaded(saved, tmp_path).layers[1]) is keras.layers.MultiHeadAttention


@BOTH
def test_registered_under_the_name_of_the_package(kind, tmp_path):
    name = {"mha": "MultiHeadAttention", "gqa": "GroupQueryAttention"}[kind]
    assert keras.saving.get_registered_name(type(layer_of(kind))) == f"kerasattention>{name}"
    assert type(reloaded(model_of(kind), tmp_path).layers[1]) is getattr(kerasattention, name)
