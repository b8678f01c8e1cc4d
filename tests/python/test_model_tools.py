"""Tools for whole models: maps, rollout, importance, pruning, LoRA, checkpoints."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import to_numpy
from kerasattention import (
    AlibiPosition,
    GroupQueryAttention,
    MultiHeadAttention,
    RelativePosition,
)

VOCABULARY, T, D, CLASSES = 13, 7, 22, 3
KERAS_MHA = keras.layers.MultiHeadAttention
KERAS_LAYERS = (KERAS_MHA, keras.layers.GroupQueryAttention)


def classifier(make, depth=2, pooled=True):
    """A small transformer of attention layers that `make` gives, as a compiled model."""
    keras.utils.set_random_seed(5)
    tokens = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, D, mask_zero=True)(tokens)
    for index in range(depth):
        layer = make(name=f"attention_{index}")
        y = layer(x, x) if isinstance(layer, KERAS_LAYERS) else layer(x)
        x = keras.layers.Add()([x, y])
    if pooled:
        x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(tokens, keras.layers.Dense(CLASSES)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def mha(**options):
    return MultiHeadAttention(5, 4, bias_initializer="random_normal", **options)


def gqa(**options):
    return GroupQueryAttention(3, 6, 2, bias_initializer="random_normal", **options)


def keras_mha(**options):
    return KERAS_MHA(5, 4, bias_initializer="random_normal", **options)


def keras_gqa(**options):
    return keras.layers.GroupQueryAttention(3, 6, 2, bias_initializer="random_normal", **options)


@pytest.fixture
def data():
    random = np.random.default_rng(3)
    x = random.integers(1, VOCABULARY, (5, T))
    x[0, 5:] = 0
    return x, random.integers(0, CLASSES, 5)


def zero_heads(model, removed):
    """Takes heads out by hand: their rows of the output kernel become zero."""
    for name, heads in removed.items():
        kernel = model.get_layer(name).projection("output").kernel
        array = to_numpy(kernel).copy()
        array[heads] = 0
        kernel.assign(array)


# Maps ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mha, gqa, keras_mha])
def test_maps_are_the_scores_the_layer_itself_returns(make, data):
    model = classifier(make)
    maps = kerasattention.attention_scores(model, data[0])
    layer = model.get_layer("attention_0")
    x = model.layers[1](keras.ops.convert_to_tensor(data[0]))
    _, expected = layer(x, x, return_attention_scores=True)
    expected = to_numpy(expected).copy()
    expected[0, :, 5:] = 0.0  # padded queries, where Keras's layer has a mean
    np.testing.assert_allclose(maps[0].weights, expected, atol=1e-6)
    assert [m.layer for m in maps] == ["attention_0", "attention_1"]


def test_maps_of_chosen_layers_heads_and_rows(data):
    model = classifier(gqa)
    whole = kerasattention.attention_scores(model, data[0])
    part = kerasattention.attention_scores(
        model, data[0], layers=["attention_1"], heads=[4, 1], rows=[6, 2, 3]
    )
    assert len(part) == 1
    np.testing.assert_allclose(
        part[0].weights, whole[1].weights[:, [4, 1]][:, :, [6, 2, 3]], atol=1e-6
    )
    assert part[0].heads == (4, 1)
    assert part[0].rows == (6, 2, 3)


def test_maps_leave_the_model_as_it_was(data):
    model = classifier(keras_mha)
    before, weights = model.predict(data[0], verbose=0), model.get_weights()
    kerasattention.attention_scores(model, data[0])
    np.testing.assert_array_equal(model.predict(data[0], verbose=0), before)
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["attention_7"]}, "attention_7.*attention_0"),
        ({"layers": [2]}, "2.*attention_0"),
        ({"heads": [6]}, "between 0 and 5"),
        ({"rows": [0, 11]}, "Query positions `rows` must lie between 0 and .*11"),
        ({"rows": [-1]}, "Query positions `rows` must lie between 0 and .*-1"),
    ],
)
def test_maps_refuse_what_the_model_lacks(options, message, data):
    with pytest.raises(ValueError, match=message):
        kerasattention.attention_scores(classifier(gqa), data[0], **options)


def test_maps_need_an_attention_layer(data):
    model = keras.Sequential([keras.Input((T,)), keras.layers.Dense(2, name="only")])
    with pytest.raises(ValueError, match="only"):
        kerasattention.attention_scores(model, data[0])


# Rollout ---------------------------------------------------------------------------


def test_rollout_by_hand():
    first = np.array([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.1, 0.9]]]])
    second = np.array([[[[0.0, 1.0], [1.0, 0.0]]]])
    rollout = kerasattention.attention_rollout([first, second])
    # Means over heads with half an identity: [[1, 0], [.15, .85]] and [[.5, .5], [.5, .5]].
    np.testing.assert_allclose(rollout[0, 0], [[1.0, 0.0], [0.15, 0.85]])
    np.testing.assert_allclose(rollout[1, 0], [[0.575, 0.425], [0.575, 0.425]])


def test_rollout_rows_sum_to_one(data):
    rollout = kerasattention.attention_rollout(
        kerasattention.attention_scores(classifier(gqa), data[0])
    )
    assert rollout.shape == (2, 5, T, T)
    np.testing.assert_allclose(rollout.sum(-1), 1.0, atol=1e-6)


def test_rollout_refuses_maps_of_some_rows(data):
    maps = kerasattention.attention_scores(classifier(gqa), data[0], rows=[0, 1])
    with pytest.raises(ValueError, match=r"all rows.*\(5, 6, 2, 7\)"):
        kerasattention.attention_rollout(maps)


# Importance and pruning ------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        mha,
        # The projections of Keras's grouped layer warn that they lose the mask.
        pytest.param(
            keras_gqa, marks=pytest.mark.filterwarnings("ignore:.*not support masking:UserWarning")
        ),
    ],
)
def test_importance_is_the_slope_of_the_loss(make, data):
    model = classifier(make)
    x, y = data
    found = kerasattention.head_importance(model, x, y, batch_size=2, normalize=False)
    kernel = model.get_layer("attention_1")._output_dense.kernel
    array, loss = to_numpy(kernel), keras.losses.SparseCategoricalCrossentropy(True)

    def losses(gate, head):
        changed = array.copy()
        changed[head] *= gate
        kernel.assign(changed)
        logits = model.predict(x, verbose=0)
        return np.array([float(loss(y[[i]], logits[[i]])) for i in range(len(y))])

    step = 0.05
    for head in range(array.shape[0]):
        slopes = (losses(1 + step, head) - losses(1 - step, head)) / (2 * step)
        np.testing.assert_allclose(
            found["attention_1"][head], np.abs(slopes).mean(), rtol=0.03, atol=2e-6
        )


def test_normalized_importance_has_length_one(data):
    found = kerasattention.head_importance(classifier(gqa), *data)
    for values in found.values():
        np.testing.assert_allclose(np.linalg.norm(values), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "removed", "heads"),
    [
        (mha, {"attention_0": [1, 4]}, (3, 3)),
        (keras_mha, {"attention_0": [0], "attention_1": [2, 3]}, (4, 4)),
        (gqa, {"attention_0": [0, 5]}, (4, 2)),
        (gqa, {"attention_0": [3, 4, 5]}, (3, 1)),
    ],
)
def test_a_pruned_model_is_the_model_with_heads_at_zero(make, removed, heads, data):
    model = classifier(make)
    pruned = kerasattention.prune_heads(model, removed)
    by_hand = kerasattention.convert_attention(model)
    zero_heads(by_hand, removed)
    np.testing.assert_allclose(
        pruned.predict(data[0], verbose=0), by_hand.predict(data[0], verbose=0), atol=1e-6
    )
    left = pruned.get_layer("attention_0").heads
    assert (left.query, left.key_value) == heads
    assert pruned.count_params() < model.count_params()


def test_pruning_keeps_sinks_gates_and_norms(data):
    model = classifier(
        lambda name: gqa(name=name, attention_sink=True, use_gate=True, qk_norm=True)
    )
    model.get_layer("attention_0").sink.assign(np.arange(6) / 3)
    removed = {"attention_0": [1, 3]}
    pruned = kerasattention.prune_heads(model, removed)
    zero_heads(model, removed)
    np.testing.assert_allclose(
        pruned.predict(data[0], verbose=0), model.predict(data[0], verbose=0), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["alibi", "relative"])
def test_pruning_keeps_the_biases_of_the_heads_that_stay(kind, data):
    random = np.random.default_rng(4)

    def make(name):
        position = AlibiPosition() if kind == "alibi" else RelativePosition(6, 5)
        return MultiHeadAttention(5, 4, position=position, use_causal_mask=True, name=name)

    model = classifier(make)
    if kind == "relative":
        for index in (0, 1):
            table = model.get_layer(f"attention_{index}").position.table
            table.assign(random.normal(size=table.shape))
    removed = {"attention_0": [0, 3], "attention_1": [2]}
    pruned = kerasattention.prune_heads(model, removed)
    expected = kerasattention.convert_attention(model)
    zero_heads(expected, removed)
    outputs = [m.predict(data[0], verbose=0) for m in (pruned, expected)]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    # Again, from what is left: heads 1, 2, 4 become 1, 4.
    twice = kerasattention.prune_heads(pruned, {"attention_0": [1]})
    zero_heads(expected, {"attention_0": [2]})
    outputs = [m.predict(data[0], verbose=0) for m in (twice, expected)]
    np.testing.assert_allclose(*outputs, atol=1e-6)


def test_layers_that_share_a_table_lose_the_same_heads(data, tmp_path):
    shared = RelativePosition(6, 5)
    model = classifier(lambda name: MultiHeadAttention(5, 4, position=shared, name=name))
    shared.table.assign(np.random.default_rng(4).normal(size=shared.table.shape))
    with pytest.raises(ValueError, match="'attention_0' and 'attention_1' share the table"):
        kerasattention.prune_heads(model, {"attention_0": [1]})
    with pytest.raises(ValueError, match="Remove the same heads of both"):
        kerasattention.prune_heads(model, {"attention_0": [1], "attention_1": [2]})
    removed = {"attention_0": [1], "attention_1": [1]}
    pruned = kerasattention.prune_heads(model, removed)
    positions = [pruned.get_layer(name).position for name in removed]
    assert positions[0] is positions[1]
    zero_heads(model, removed)
    expected = model.predict(data[0], verbose=0)
    np.testing.assert_allclose(pruned.predict(data[0], verbose=0), expected, atol=1e-6)
    pruned.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(data[0], verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"attention_0": [0]}, "equally many"),
        ({"attention_0": [0, 1, 2, 3, 4, 5]}, "at least one"),
        ({"attention_0": [6]}, "between 0 and 5"),
        ({"other": [0]}, "other"),
    ],
)
def test_pruning_refuses(removed, message):
    with pytest.raises(ValueError, match=message):
        kerasattention.prune_heads(classifier(gqa), removed)


def test_least_important_heads():
    model = classifier(gqa)
    importance = {
        "attention_0": np.array([5.0, 1.0, 3.0, 2.0, 9.0, 4.0]),
        "attention_1": np.array([9.0, 9.0, 9.0, 9.0, 9.0, 9.0]),
    }
    # One of each group of three goes together: heads 1 and 3, then 2 and 5.
    assert kerasattention.least_important(model, importance, 0.2) == {
        "attention_0": [1, 3],
        "attention_1": [],
    }
    assert kerasattention.least_important(model, importance, 0.34)["attention_0"] == [1, 2, 3, 5]


# LoRA ------------------------------------------------------------------------------


def test_lora_trains_its_factors_alone_and_reloads(data, tmp_path):
    model = classifier(lambda name: gqa(name=name, attention_sink=True))
    before = model.predict(data[0], verbose=0)
    kerasattention.enable_lora(model, 2)
    np.testing.assert_allclose(model.predict(data[0], verbose=0), before, atol=1e-6)
    paths = {variable.path.split("/")[-1] for variable in model.trainable_variables}
    assert paths == {"lora_kernel_a", "lora_kernel_b"}
    assert len(model.trainable_variables) == 2 * 2 * 2
    frozen = {v.path: to_numpy(v) for v in model.non_trainable_variables if "kernel" in v.path}
    model.compile(keras.optimizers.SGD(1.0), model.loss)
    model.fit(*data, epochs=2, verbose=0)
    for variable in model.non_trainable_variables:
        if variable.path in frozen:
            np.testing.assert_array_equal(to_numpy(variable), frozen[variable.path])
    after = model.predict(data[0], verbose=0)
    assert np.abs(after - before).max() > 1e-4
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(data[0], verbose=0), after, atol=1e-5)


def test_lora_refuses():
    model = classifier(mha)
    with pytest.raises(ValueError, match="rank=0"):
        kerasattention.enable_lora(model, 0)
    with pytest.raises(ValueError, match="queries"):
        kerasattention.enable_lora(model, 2, projections=["queries"])
    kerasattention.enable_lora(model, 2)
    with pytest.raises(ValueError, match="already"):
        kerasattention.enable_lora(model, 2)


# Checkpoints -----------------------------------------------------------------------


def matrices(random, heads=6, kv_heads=2, size=4, features=D):
    shapes = {
        "query": (heads * size, features),
        "key": (kv_heads * size, features),
        "value": (kv_heads * size, features),
        "output": (features, heads * size),
    }
    return {name: random.normal(size=shape) for name, shape in shapes.items()}


def test_projections_are_torchs_linear_maps():
    random = np.random.default_rng(7)
    layer = GroupQueryAttention(4, 6, 2)
    layer.build((2, T, D))
    given = matrices(random)
    biases = {name: random.normal(size=m.shape[0]) for name, m in given.items()}
    kerasattention.load_projections(layer, **{n: (m, biases[n]) for n, m in given.items()})
    x = random.normal(size=(2, T, D)).astype("float32")
    query = to_numpy(layer.projection("query")(x)).reshape(2, T, -1)
    np.testing.assert_allclose(query, x @ given["query"].T + biases["query"], atol=1e-4)
    heads = random.normal(size=(2, T, 6, 4)).astype("float32")
    np.testing.assert_allclose(
        to_numpy(layer.projection("output")(heads)),
        heads.reshape(2, T, -1) @ given["output"].T + biases["output"],
        atol=1e-4,
    )


def test_permutation_of_llama_cpp_is_undone():
    random = np.random.default_rng(7)
    given = matrices(random)
    plain, permuted = (GroupQueryAttention(4, 6, 2, use_bias=False) for _ in range(2))
    for layer in (plain, permuted):
        layer.build((2, T, D))
    kerasattention.load_projections(plain, **given)

    def permute(rows, heads):  # llama.cpp's own formula
        return (
            rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1)
            .swapaxes(1, 2)
            .reshape(rows.shape)
        )

    stored = {**given, "query": permute(given["query"], 6), "key": permute(given["key"], 2)}
    kerasattention.load_projections(permuted, **stored, undo_permutation=True)
    for a, b in zip(plain.get_weights(), permuted.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_vectors_of_a_checkpoint():
    layer = GroupQueryAttention(4, 6, 2, use_bias=False, qk_norm=True, attention_sink=True)
    layer.build((2, T, D))
    given = matrices(np.random.default_rng(7))
    with pytest.raises(ValueError, match=r"query_norm.*qk_norm"):
        kerasattention.load_projections(layer, **given, sink=np.ones(6))
    kerasattention.load_projections(
        layer, **given, query_norm=np.full(4, 2.0), key_norm=np.full(4, 3.0), sink=np.arange(6)
    )
    np.testing.assert_array_equal(to_numpy(layer.sink), np.arange(6))
    np.testing.assert_array_equal(to_numpy(layer.vectors()["key_norm"]), np.full(4, 3.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.ones((D, 24))}, r"\(24, 22\).*\(22, 24\).*transposed"),
        ({"key": np.ones((24, D))}, r"\(8, 22\).*\(24, 22\)"),
        ({"value": (np.ones((8, D)), np.ones(8))}, "use_bias=False"),
        ({"gate": np.ones((24, D))}, "use_gate=False"),
        ({"sink": np.ones(6)}, "attention_sink"),
        ({"output": np.full((D, 24), np.nan)}, "NaN"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message):
    layer = GroupQueryAttention(4, 6, 2, use_bias=False)
    layer.build((2, T, D))
    before = layer.get_weights()
    with pytest.raises(ValueError, match=message):
        kerasattention.load_projections(layer, **(matrices(np.random.default_rng(7)) | change))
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
