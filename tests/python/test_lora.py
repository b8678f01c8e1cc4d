"""LoRA of attention projections."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import JIT, predicted, to_numpy
from classifiers import classifier, gqa, mha


def test_lora_trains_its_factors_alone_and_reloads(data, tmp_path):
    model = classifier(lambda name: gqa(name=name, attention_sink=True))
    before = predicted(model, data[0])
    kerasattention.enable_lora(model, 2)
    np.testing.assert_allclose(predicted(model, data[0]), before, atol=1e-6)
    paths = {variable.path.split("/")[-1] for variable in model.trainable_variables}
    assert paths == {"lora_kernel_a", "lora_kernel_b"}
    assert len(model.trainable_variables) == 2 * 2 * 2
    frozen = {v.path: to_numpy(v) for v in model.non_trainable_variables if "kernel" in v.path}
    model.compile(keras.optimizers.SGD(1.0), model.loss, jit_compile=JIT)
    model.fit(*data, epochs=2, verbose=0)
    for variable in model.non_trainable_variables:
        if variable.path in frozen:
            np.testing.assert_array_equal(to_numpy(variable), frozen[variable.path])
    after = predicted(model, data[0])
    assert np.abs(after - before).max() > 1e-4
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, data[0]), after, atol=1e-5)


def test_lora_refuses():
    model = classifier(mha)
    with pytest.raises(ValueError, match="rank=0"):
        kerasattention.enable_lora(model, 0)
    with pytest.raises(ValueError, match="queries"):
        kerasattention.enable_lora(model, 2, projections=["queries"])
    kerasattention.enable_lora(model, 2)
    with pytest.raises(ValueError, match="already"):
        kerasattention.enable_lora(model, 2)


@pytest.mark.parametrize("freeze", ["all", "nested", "attention"])
def test_lora_trains_its_factors_in_frozen_models_and_layers(freeze):
    inner_input = keras.Input((5, 6))
    attention = gqa(name="attention", attention_sink=True)
    inner = keras.Model(inner_input, attention(inner_input), name="inner")
    x = keras.Input((5, 6))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Dense(6)(inner(x))))
    {"all": model, "nested": inner, "attention": attention}[freeze].trainable = False
    kerasattention.enable_lora(model, 2)
    names = [variable.path.split("/")[-1] for variable in model.trainable_variables]
    assert sorted(names) == ["lora_kernel_a", "lora_kernel_a", "lora_kernel_b", "lora_kernel_b"]
    frozen = [to_numpy(v) for v in model.non_trainable_variables]
    factors = [to_numpy(v) for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=JIT)
    data = np.random.default_rng(1).normal(size=(7, 5, 6)).astype("float32")
    model.fit(data, data[..., :3], epochs=2, verbose=0)
    for variable, before in zip(model.non_trainable_variables, frozen, strict=True):
        if "seed" not in variable.path:
            np.testing.assert_array_equal(to_numpy(variable), before)
    changed = [
        not np.array_equal(to_numpy(v), before)
        for v, before in zip(model.trainable_variables, factors, strict=True)
    ]
    assert all(changed)
