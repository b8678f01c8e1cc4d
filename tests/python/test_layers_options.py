"""The table of options against the constructors, the configs and the docstrings."""

import ast
import inspect
import pathlib
import pydoc
from typing import get_type_hints

import pytest

import kerasattention
from kerasattention import GroupQueryAttention, MultiHeadAttention, RotaryPosition, ScaleByPosition
from kerasattention.layers.options import OPTIONS, NamedOptions

LAYERS = {
    MultiHeadAttention: {"num_heads": 6, "key_dim": 4},
    GroupQueryAttention: {"head_dim": 4, "num_query_heads": 6, "num_key_value_heads": 2},
}
BOTH = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
OTHER_VALUES = {
    "dropout": 0.25,
    "use_bias": False,
    "flash_attention": False,
    "seed": 7,
    "sliding_window": 3,
    "use_gate": True,
    "position": RotaryPosition(theta=100.0),
    "qk_norm": True,
    "logit_soft_cap": 5.0,
    "attention_sink": True,
    "value_norm": True,
    "use_key_as_value": True,
    "scale": 0.5,
    "query_scale": ScaleByPosition("log", length=5),
    "use_causal_mask": True,
}


@BOTH
def test_constructors_take_the_options_with_the_defaults_of_the_table(kind):
    parameters = inspect.signature(kind.__init__).parameters
    shared = [name for name in parameters if name in OPTIONS]
    assert shared == list(OPTIONS)
    assert {name: parameters[name].default for name in shared} == {
        name: option.default for name, option in OPTIONS.items()
    }
    by_name = [x.name for x in parameters.values() if x.kind is inspect.Parameter.KEYWORD_ONLY]
    assert by_name == list(OPTIONS)[list(OPTIONS).index("sliding_window") :]
    assert {name: parameters[name].annotation for name in by_name}.items() <= get_type_hints(
        NamedOptions
    ).items()
    assert list(inspect.signature(kind).parameters) == list(parameters)[1:]
    own = set(parameters) - set(OPTIONS) - {"self", "kwargs"}
    assert own == set(LAYERS[kind]) | (
        {"value_dim", "output_shape", "attention_axes"} if kind is MultiHeadAttention else set()
    )


@BOTH
def test_configs_hold_a_default_only_where_keras_has_the_option(kind):
    config = kind(**LAYERS[kind]).get_config()
    left_out = {name for name, option in OPTIONS.items() if not option.always_in_config}
    assert left_out == {
        "position",
        "qk_norm",
        "logit_soft_cap",
        "attention_sink",
        "value_norm",
        "use_key_as_value",
        "scale",
        "query_scale",
        "key_value_of",
        "use_causal_mask",
        "mask",
    }
    assert left_out.isdisjoint(config)
    assert set(OPTIONS) - left_out <= set(config)


@BOTH
def test_other_values_than_the_defaults_survive_the_config(kind):
    config = kind(**LAYERS[kind], **OTHER_VALUES).get_config()
    assert OTHER_VALUES.keys() <= config.keys()
    again = kind.from_config(config)
    for name, value in OTHER_VALUES.items():
        if name != "position":
            assert getattr(again, name) == value, name
    assert again.position.theta == 100.0
    assert again.get_config() == config


def test_an_option_is_read_only():
    layer = MultiHeadAttention(2, 3)
    with pytest.raises(AttributeError, match="`dropout` is set when the layer is made"):
        layer.dropout = 0.5
    assert layer.dropout == 0.0


@BOTH
def test_help_shows_every_argument_and_each_once(kind):
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    arguments = kind.__doc__.split("    Args:\n")[1].split("    Call arguments:\n")[0]
    names = [*inspect.signature(kind.__init__).parameters][1:-1]
    for name in names:
        assert f"\n{arguments}".count(f"\n        {name}: ") == 1, name
        assert f"    {name}: " in text
    calls = kind.__doc__.split("    Call arguments:\n")[1]
    for name in [*inspect.signature(kind.call).parameters][1:]:
        assert f"        {name}: " in calls or f"`{name}`" in calls, name
    assert max(map(len, kind.__doc__.splitlines())) <= 88


def lines_of(path):
    """A module's lines but for imports, blanks and the constructor's signature."""
    source = path.read_text(encoding="utf-8")
    lines, left_out = source.splitlines(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            left_out |= set(range(node.lineno, node.body[0].lineno))
    kept = (line.strip() for i, line in enumerate(lines, 1) if i not in left_out)
    return [line for line in kept if line]


def test_the_two_classes_have_no_run_of_six_equal_lines():
    folder = pathlib.Path(kerasattention.__file__).parent / "layers"
    first, second = (
        lines_of(folder / f"{name}.py")
        for name in ("multi_head_attention", "group_query_attention")
    )
    runs = {tuple(second[i : i + 6]) for i in range(len(second) - 5)}
    twins = [first[i : i + 6] for i in range(len(first) - 5) if tuple(first[i : i + 6]) in runs]
    assert min(len(first), len(second)) > 40
    assert twins == []
