"""How weights are split over 8 devices, and what is refused."""

import keras
import pytest
from models import WIDTH, decoder, specs

from kerasattention import (
    GroupQueryAttention,
    HeadParallel,
    MultiHeadAttention,
    RelativeKeysPosition,
    attention_layout_map,
    check_sharding,
    layout_set,
    with_distribution,
)

KD = keras.distribution


def attention(query, key_value, name="att"):
    tokens = keras.Input((5, WIDTH))
    layer = GroupQueryAttention(3, query, key_value, name=name)
    return keras.Model(tokens, layer(tokens))


# Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "key_value", "shape"),
    [(8, 2, (1, 1, 2, 4)), (4, 8, (2, 1, 4, 1)), (2, 1, (4, 1, 1, 2)), (1, 6, (8, 1, 1, 1))],
)
def test_the_mesh_has_two_axes_for_heads(model, key_value, shape):
    mesh = HeadParallel(model, num_key_value_heads=key_value).device_mesh
    assert mesh.axis_names == ["batch", "seq", "model_kv", "model_rep"]
    assert mesh.shape == shape
    assert HeadParallel(model, batch=8 // model).num_model_replicas == 8 // model


def test_sizes_that_are_not_those_of_the_devices_are_refused():
    flag = "--xla_force_host_platform_device_count"
    for sizes, text in (
        ({"model": 16}, "model = 16 needs 16 devices"),
        ({"model": 3}, "model = 3 needs 3 devices or a multiple"),
        ({"model": 4, "batch": 4}, "batch = 4, model = 4 needs 16 devices"),
    ):
        with pytest.raises(ValueError, match=f"{text}.*JAX has 8: cpu:0.*{flag}=.*restart"):
            HeadParallel(**sizes)
    with pytest.raises(ValueError, match="seq = 3, model = 4 needs 12 devices"):
        HeadParallel(4, seq=3)
    with pytest.raises(ValueError, match="`seq` must be a positive integer"):
        HeadParallel(4, seq=0)
    with pytest.raises(ValueError, match="`model` must be a positive integer"):
        HeadParallel(0)
    with pytest.raises(ValueError, match="`mlp` must be True or False"):
        HeadParallel(8, mlp="yes")


@pytest.mark.parametrize(("query", "key_value"), [(28, 4), (40, 10), (8, 3)])
def test_heads_that_need_gathering_are_refused(query, key_value):
    with with_distribution(HeadParallel(8)):
        if query % key_value == 0:
            with pytest.raises(
                ValueError, match=f"{key_value} key/value heads of .*'att'.*without"
            ):
                attention(query, key_value)
    if key_value != 4:  # of 4 heads each may serve 2 devices, with other query heads
        with pytest.raises(ValueError, match=f"{key_value} key/value heads cannot be split over 8"):
            HeadParallel(8, num_key_value_heads=key_value)


@pytest.mark.parametrize(
    ("model", "query", "key_value"), [(8, 32, 8), (8, 64, 8), (4, 28, 4), (2, 40, 10), (8, 32, 1)]
)
def test_published_numbers_of_heads_that_can_be_split(model, query, key_value):
    with with_distribution(HeadParallel(model)):
        check_sharding(attention(query, key_value))


# Rules ----------------------------------------------------------------------------------------


def test_rules_come_before_those_for_heads():
    rules = {"att/key/.*": None, "att/query/kernel": ("batch", "model", None)}
    distribution = HeadParallel(4, rules=rules)
    with with_distribution(distribution):
        model = decoder(key_value=4)
        check_sharding(model)
    found = specs(model)
    assert found["att/query/kernel"] == ("batch", ("model_kv", "model_rep"), None)
    assert "att/key/kernel" not in found
    assert found["att/value/kernel"] == (None, ("model_kv", "model_rep"), None)


def test_a_rule_that_does_not_fit_a_weight_is_refused():
    with (
        with_distribution(HeadParallel(8, rules={"head/kernel": ("model",)})),
        pytest.raises(ValueError, match="must name 2 axes"),
    ):
        decoder()
    layer = keras.layers.Dense(12, name="small")
    with (
        with_distribution(HeadParallel(8, rules={"small/kernel": (None, "model")})),
        pytest.raises(ValueError, match=r"\(7, 12\), whose axis 1 does not divide by 8"),
    ):
        layer.build((None, 7))


def test_an_mlp_that_does_not_divide_stays_whole():
    distribution = HeadParallel(8, mlp=True)
    assert distribution.layout_of("up/kernel", (7, 12)) == (
        (None, None),
        "replicated: 12 hidden units do not divide by 8",
    )
    assert distribution.layout_of("norm/scale", (7,)) == ((None,), "replicated: no rule")


# Checks ---------------------------------------------------------------------------------------


def test_rules_that_concern_no_weight_are_refused():
    text = r"Rules that no weight of a model matches: \['haed"
    with with_distribution(HeadParallel(8, rules={"haed/kernel": (None, "model")})):
        model = attention(8, 8)
        with pytest.raises(ValueError, match=text):
            check_sharding(model)
    with with_distribution(HeadParallel(8, mlp=True)):
        model = attention(8, 8)
        with pytest.raises(ValueError, match=r"\['mlp'\]"):
            check_sharding(model)


def model_parallel(**layouts):
    mesh = KD.DeviceMesh((2, 4), ["batch", "model"], KD.list_devices())
    found = KD.LayoutMap(mesh)
    for pattern, axes in layouts.items():
        layout_set(found, f".*{pattern}/kernel", axes)
    return KD.ModelParallel(layout_map=found, batch_dim_name="batch")


def test_kernels_that_are_whole_or_split_elsewhere_are_refused():
    whole = (None, None, None)
    for layouts, text in (
        ({}, "whole on each of 4 devices: 'att/query/kernel', 'att/key/kernel', .*model=4"),
        ({"(query|key|value)": (None, "model", None)}, "whole .*: 'att/attention_output/kernel'"),
        ({"(query|key|value|attention_output)": ("model", None, None)}, "split, but not by heads"),
        ({"(query|key|value|attention_output)": whole}, "whole on each of 4"),
    ):
        with with_distribution(model_parallel(**layouts)):
            model = attention(8, 8)
        with pytest.raises(ValueError, match=text):
            check_sharding(model)
    with with_distribution(KD.DataParallel()):
        model = attention(8, 8)
    with pytest.raises(ValueError, match=r"no axis for weights.*Only batches are split"):
        check_sharding(model)
    with with_distribution(KD.DataParallel()):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="has no attention layer that is built"):
        check_sharding(model)


# A plain map ----------------------------------------------------------------------------------


def mesh():
    return KD.DeviceMesh((2, 4), ["batch", "model"], KD.list_devices())


@pytest.mark.parametrize("kind", ["ours", "keras"])
def test_the_map_splits_heads(kind):
    options = {"attention_sink": True} if kind == "ours" else {}
    layouts = attention_layout_map(mesh(), 4)
    layout_set(layouts, "head/kernel", (None, "model"))
    with with_distribution(KD.ModelParallel(layout_map=layouts, batch_dim_name="batch")):
        model = decoder(key_value=4, kind=kind, use_gate=True, **options)
        check_sharding(model)
    found = specs(model)
    assert found.pop("head/kernel") == (None, "model")
    assert all("model" in spec for spec in found.values())
    assert len(found) == 4 + 4 + 1 + len(options)


def test_the_map_splits_relative_keys_where_the_path_shows_heads():
    layouts = attention_layout_map(mesh(), 8)
    with with_distribution(KD.ModelParallel(layout_map=layouts, batch_dim_name="batch")):
        for kind, split in (("transformer_xl", 3), ("deberta", 0)):
            model = decoder(key_value=8, kind="ours", position=RelativeKeysPosition(3, kind))
            found = {path: spec for path, spec in specs(model).items() if "relative_keys" in path}
            assert sum("model" in spec for spec in found.values()) == split, found


def test_one_key_value_head_stays_whole():
    layouts = attention_layout_map(mesh(), 1)
    with with_distribution(KD.ModelParallel(layout_map=layouts, batch_dim_name="batch")):
        model = MultiHeadAttention(4, 3)
        model.build((None, 5, 7))
        check_sharding(attention(8, 1, "other"))


def test_maps_are_checked():
    with pytest.raises(ValueError, match=r"2 key/value heads .*4 devices.*HeadParallel\(model=4\)"):
        attention_layout_map(mesh(), 2)
    with pytest.raises(ValueError, match=r"axis 'heads'. Received: .*\['batch', 'model'\]"):
        attention_layout_map(mesh(), 4, "heads")
    layouts = KD.LayoutMap(mesh())
    with pytest.raises(ValueError, match="Received: 'model'"):
        layout_set(layouts, "a", "model")
    with pytest.raises(ValueError, match=r"\['batch', 'model'\]. Received: \('heads',\)"):
        layout_set(layouts, "a", ("heads",))
    with pytest.raises(ValueError, match=r"has a rule already. Received: 'a'"):
        layout_set(layout_set(layouts, "a", (None,)), "a", (None,))
    with pytest.raises(ValueError, match="Received: dict"):
        layout_set({}, "a", (None,))
