"""Models on 8 devices: their numbers, and what is refused before Keras changes anything."""

import keras
import numpy as np
import pytest
from models import LENGTH, ROWS, decoder, specs, tokens, trained

import kerasattention as ka
from kerasattention import HeadParallel, RelativePosition, predict_padded, with_distribution

KD = keras.distribution
BOTH = ("model_kv", "model_rep")
OPTIONS = {"use_gate": True, "attention_sink": True}


def all_options():
    return {
        **OPTIONS,
        "qk_norm": True,
        "position": RelativePosition(8, 16),
        "dropout": 0.2,
        "seed": 4,
    }


@pytest.fixture(scope="module")
def single():
    return {
        "ours": trained(decoder(**all_options())),
        "keras": trained(decoder(kind="keras", use_gate=True)),
    }


def assert_close(found, expected):
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(found[2], expected[2], strict=True):
        # Adam divides by the gradient's size: rounding of tiny gradients counts.
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


HEAD = {"head/kernel": (None, "model"), "tok/embeddings": ("model", None)}


@pytest.mark.parametrize("sizes", [(4, None), (8, 2)])
def test_our_layers_have_the_numbers_of_one_device(single, sizes):
    model, heads = sizes
    distribution = HeadParallel(model, num_key_value_heads=heads, rules=HEAD, mlp=True)
    with with_distribution(distribution):
        sharded = decoder(**all_options())
        ka.check_sharding(sharded)
        found = trained(sharded)
    assert distribution.device_mesh.shape == (8 // model, 1, 2, model // 2)
    # The embedding was made before the heads were known, and is on the same mesh.
    meshes = {variable.value.sharding.mesh for variable in sharded.variables}
    assert meshes == {distribution.device_mesh.backend_mesh}
    assert_close(found, single["ours"])
    of_query, of_key = {0: (BOTH,)}, ("model_kv",)
    table = sharded.get_layer("att").position.table.path
    assert specs(sharded) == {
        "tok/embeddings": (BOTH, None),
        "att/sink": of_query[0],
        table: (None, BOTH),
        "att/query/kernel": (None, BOTH, None),
        "att/query/bias": (BOTH, None),
        "att/key/kernel": (None, "model_kv", None),
        "att/key/bias": (*of_key, None),
        "att/value/kernel": (None, "model_kv", None),
        "att/value/bias": (*of_key, None),
        "att/gate/kernel": (None, BOTH, None),
        "att/gate/bias": (BOTH, None),
        "att/attention_output/kernel": (BOTH, None, None),
        "b0_up/kernel": (None, BOTH),
        "b0_up/bias": (BOTH,),
        "b0_down/kernel": (BOTH, None),
        "head/kernel": (None, BOTH),
    }
    # The optimizer's numbers of a weight are where the weight is.
    slots = {v.path.split("/")[-1]: v.value for v in sharded.optimizer.variables}
    assert tuple(slots["att_query_kernel_momentum"].sharding.spec) == (None, BOTH, None)


def test_layers_of_keras_are_split_too(single):
    with HeadParallel(8).scope():
        sharded = decoder(kind="keras", use_gate=True)
        ka.check_sharding(sharded)
        found = trained(sharded)
    assert_close(found, single["keras"])
    found = specs(sharded)
    assert found["att/key/kernel"] == (None, "model_kv", None)
    assert found["att/attention_output/kernel"] == (BOTH, None, None)
    assert "head/kernel" not in found


class Subclassed(keras.Model):
    """Its weights are made after the names of its layers are known."""

    def __init__(self):
        super().__init__()
        self.attention = ka.GroupQueryAttention(3, 8, 4, attention_sink=True)

    def call(self, x):
        return self.attention(x)


def test_a_subclassed_model_is_split_when_it_is_built():
    x = np.random.default_rng(0).normal(size=(8, LENGTH, 7)).astype("float32")
    with with_distribution(HeadParallel(8)) as distribution:
        model = Subclassed()
        model.compile("sgd", "mse")
        model.fit(x, x, batch_size=8, verbose=0)
        ka.check_sharding(model)
    assert distribution.device_mesh.shape == (1, 1, 4, 2)
    assert len(specs(model)) == 4 + 3 + 1  # kernels, biases of heads, the sink


def test_factors_and_int8_follow_the_kernel():
    with with_distribution(HeadParallel(8)):
        model = decoder()
        ka.enable_lora(model, 5)
        found = specs(model)
        assert found["att/query/lora_kernel_a"] == (None, BOTH, None)
        assert found["att/value/lora_kernel_a"] == (None, "model_kv", None)
        assert not any("lora_kernel_b" in path for path in found)
        x, y = tokens()
        model.fit(x, y, batch_size=ROWS, verbose=0)
        layer = ka.GroupQueryAttention(3, 8, 2, name="att")
        inputs = keras.Input((LENGTH, 7))
        model = keras.Model(inputs, layer(inputs))
        x = np.random.default_rng(2).normal(size=(8, LENGTH, 7)).astype("float32")
        before = model.predict(x, verbose=0)
        for projection in layer.projections().values():
            projection.quantize("int8")
        model.predict_function = None
        assert specs(model)["att/query/kernel"] == (None, BOTH, None)
        assert specs(model)["att/query/kernel_scale"] == (None, None, BOTH, None)
        np.testing.assert_allclose(model.predict(x, verbose=0), before, atol=0.05)


# Batches --------------------------------------------------------------------------------------

RAGGED = "batches of 12 do not divide over 8 devices"


def test_a_batch_that_does_not_divide_leaves_the_model_as_it_was():
    x, y = tokens(60)
    with with_distribution(KD.DataParallel()):
        model = decoder()
        weights = model.get_weights()
        with pytest.raises(ValueError, match=f"{RAGGED}.*predict_padded.*60 rows in batches of 16"):
            model.fit(x, y, batch_size=16, verbose=0)
        with pytest.raises(ValueError, match=RAGGED):
            model.predict(x, batch_size=16, verbose=0)
        with pytest.raises(ValueError, match=RAGGED):
            model.evaluate(x, y, batch_size=16, verbose=0)
        with pytest.raises(ValueError, match=RAGGED):
            model.fit(x[:16], y[:16], validation_data=(x[:12], y[:12]), batch_size=16, verbose=0)
        with pytest.raises(ValueError, match=RAGGED):
            model.fit(x[:44], y[:44], validation_split=0.27, batch_size=16, verbose=0)
        with pytest.raises(ValueError, match=RAGGED):
            model.train_on_batch(x[:12], y[:12])
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        x, y = tokens(ROWS if index == 0 else 12)
        return x, y


@pytest.mark.parametrize("kind", ["ours", "keras"])
def test_data_that_comes_by_batches_leaves_the_weights_of_the_last_step(kind):
    with with_distribution(HeadParallel(2, rules={"tok/.*": ("batch", None)})):
        model = decoder(kind=kind)
        before = model.get_weights()
        with pytest.raises(ValueError, match="batches of 6 do not divide over 4 groups of devices"):
            model.predict(tokens(6)[0], verbose=0)
        model.fit(Batches(), verbose=0)  # 12 divides by 4
    with with_distribution(KD.DataParallel()):
        model = decoder(kind=kind)
        with pytest.raises(ValueError, match=RAGGED):
            model.fit(Batches(), verbose=0, shuffle=False)
        after = model.get_weights()
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, after, strict=True))


def test_predictions_for_any_number_of_rows():
    x, _ = tokens(13)
    model = decoder()
    expected = model.predict(x, verbose=0)
    with with_distribution(KD.DataParallel()):
        sharded = decoder()
        for rows, size in ((13, None), (13, 8), (1, 16), (8, 8)):
            found = predict_padded(sharded, x[:rows], size)
            assert found.shape[0] == rows
            np.testing.assert_allclose(found, expected[:rows], atol=1e-5)
        with pytest.raises(ValueError, match="batches of 12"):
            predict_padded(sharded, x, 12)
        with pytest.raises(ValueError, match=r"Received: \[0\] rows"):
            predict_padded(sharded, x[:0])
    # On one device it is `predict()`.
    np.testing.assert_allclose(predict_padded(model, x, 5), expected, atol=1e-6)


# Models of other devices ----------------------------------------------------------------------


def test_a_model_that_was_built_before_is_refused():
    model = decoder()
    x, y = tokens()
    with with_distribution(HeadParallel(4)):
        for call in (lambda: model.fit(x, y, verbose=0), lambda: model.predict(x, verbose=0)):
            with pytest.raises(
                ValueError, match=r"build the model inside .*is on 1 device, .* has 8"
            ):
                call()
        with pytest.raises(ValueError, match="was not built over several devices"):
            ka.check_sharding(model)
        inside = decoder()
    model.predict(x, verbose=0)
    inside.compile(keras.optimizers.Adam(), "mse")
    with (
        with_distribution(HeadParallel(4)),
        pytest.raises(ValueError, match="compile the model inside"),
    ):
        inside.fit(x, y, verbose=0)


def test_the_distribution_before_is_in_force_again():
    assert KD.distribution() is None
    outer = KD.DataParallel()
    with with_distribution(outer):
        with pytest.raises(ZeroDivisionError), with_distribution(HeadParallel(4)):
            raise ZeroDivisionError
        assert KD.distribution() is outer
    assert KD.distribution() is None
    with pytest.raises(ValueError, match="Received: int"), with_distribution(3):
        pass


def test_training_outside_is_slow_and_says_so():
    x, _ = tokens()
    with with_distribution(HeadParallel(4)):
        model = decoder()
    with pytest.warns(UserWarning, match="2 groups of them compute all rows"):
        model.predict(x, verbose=0)
    with with_distribution(HeadParallel(8)):
        model = decoder()
    model.predict(x, verbose=0)  # each device has the rows anyway


def test_a_model_is_saved_and_loaded_under_another_mesh(tmp_path):
    x, _ = tokens()
    with with_distribution(HeadParallel(8)):
        model = decoder(**OPTIONS)
        model.fit(*tokens(), batch_size=ROWS, verbose=0)
        expected = model.predict(x, verbose=0)
        model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)
    with with_distribution(HeadParallel(2)):
        loaded = keras.models.load_model(tmp_path / "m.keras")
        ka.check_sharding(loaded)
        np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)
