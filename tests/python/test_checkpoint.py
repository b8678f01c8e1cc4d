"""Loading a checkpoint's projections into a layer."""

import numpy as np
import pytest

import kerasattention
from backends import to_numpy
from classifiers import D, T
from kerasattention import GroupQueryAttention


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
