"""Rules by the paths of weights, on any backend."""

import pytest

from kerasattention.distribution import rules


@pytest.mark.parametrize(
    ("path", "rank", "axis"),
    [
        ("b0_ffn_up/kernel", 2, 1),
        ("model/block/gate_proj_1/kernel", 2, 1),
        ("up/bias", 1, 0),
        ("b0_ffn_down/kernel", 2, 0),
        ("b0_ffn_down/bias", 1, None),
        ("a/gate/kernel", 3, None),  # of attention
        ("group/kernel", 2, None),
        ("markup/kernel", 2, None),
        ("up/down/dense/kernel", 2, None),
    ],
)
def test_the_hidden_units_of_an_mlp(path, rank, axis):
    assert rules.mlp_axis(path, rank) == axis


def test_a_rule_matches_a_whole_path():
    known = rules.checked_rules({"head/kernel": [None, "model"], ".*up/kernel": None})
    assert rules.matching_rule(known, "head/kernel") == "head/kernel"
    assert rules.matching_rule(known, "my_head/kernel") is None
    assert rules.axes_of_rule(known["head/kernel"], (3, 5), "p") == (None, rules.MODEL_AXES)
    assert rules.axes_of_rule(None, (3, 5), "p") == (None, None)
    with pytest.raises(ValueError, match="one of `rules` only"):
        rules.matching_rule({"a.*": None, ".*b": None}, "ab")


def test_rules_are_checked():
    with pytest.raises(ValueError, match=r"`rules` must be a dictionary.*Received: \['a'\]"):
        rules.checked_rules(["a"])
    with pytest.raises(ValueError, match=r"regular expressions.*'\('"):
        rules.checked_rules({"(": None})
    with pytest.raises(ValueError, match=r"None or one of .*Received: 'model' for 'a'"):
        rules.checked_rules({"a": "model"})
    with pytest.raises(ValueError, match=r"Received: \('heads',\) for 'a'"):
        rules.checked_rules({"a": ("heads",)})
    with pytest.raises(ValueError, match=r"must name 2 axes, as the weight has shape \(3, 5\)"):
        rules.axes_of_rule(("model",), (3, 5), "p")
