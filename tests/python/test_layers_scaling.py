"""Factors of queries and logits against the float64 reference, and hand-worked values."""

import math

import numpy as np
import pytest

import kerasattention as ka
import option_checks as checks
from backends import BACKEND, sampled, tensor, to_numpy, value_and_gradients
from kerasattention import ScaleByPosition
from kerasattention.layers.scaling import per_dimension_factor
from option_checks import D, H, K, N, T, grouped
from published_models import additive, randomize


@pytest.mark.parametrize("scale", [0.3, "learned"])
def test_output_and_gradients_are_those_of_the_reference(scale):
    def make(**options):
        return grouped(
            scale=scale, logit_soft_cap=2.0, position=ka.RotaryPosition(theta=50.0), **options
        )

    wanted = {"scale": None if scale == "learned" else scale, "cap": 2.0, "rotary": 50.0}
    checks.check_against_reference(make, wanted, cross=scale == "learned")


def test_a_new_learned_scale_is_the_usual_one():
    learned, plain = grouped(scale="learned"), grouped()
    for layer in (learned, plain):
        layer.build((2, T, D))
    assert [x.path.split("/")[-1] for x in learned.weights].count("per_dim_scale") == 1
    for weight, value in zip(
        [x for x in learned.weights if not x.path.endswith("per_dim_scale")],
        plain.get_weights(),
        strict=True,
    ):
        weight.assign(value)
    x = np.random.default_rng(1).normal(size=(2, T, D)).astype("float32")
    np.testing.assert_allclose(to_numpy(learned(x)), to_numpy(plain(x)), atol=1e-6)


def test_a_scale_of_zero_logits_gives_the_mean():
    """A scale so small that all logits are 0: each query gets the mean of the values."""
    layer = grouped(scale=1e-30, use_bias=False)
    x = np.random.default_rng(1).normal(size=(2, T, D)).astype("float32")
    found = to_numpy(layer(x))
    np.testing.assert_allclose(found, np.repeat(found[:, :1], T, axis=1), atol=1e-6)


def test_factors_worked_by_hand():
    """log2(1 + e^w): 1 at 0, log2(3) at log(2), and w / log(2) where w is large."""
    weight = np.array([0.0, np.log(2.0), 30.0, -30.0])
    found = to_numpy(per_dimension_factor(weight.astype("float32"), "float32"))
    expected = [1.0, np.log2(3.0), 30 / np.log(2), np.exp(-30.0) / np.log(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Its slope is sigmoid(w) / log(2), also at 0, where a weight begins.
    _, gradients = value_and_gradients(
        lambda w: (per_dimension_factor(w, "float32"),), {"w": tensor(weight)}, tensor(np.ones(4))
    )
    slopes = 1 / (1 + np.exp(-weight)) / np.log(2)
    np.testing.assert_allclose(gradients["w"], slopes, rtol=1e-6)


@pytest.mark.parametrize("value", [0, -1.0, True, "rms", float("nan"), float("inf"), [1.0]])
def test_scales_that_do_not_fit_are_refused(value):
    with pytest.raises(ValueError, match='`scale` must be `None`, a positive number or "learned"'):
        grouped(scale=value)


@pytest.mark.parametrize("scale", [0.3, "learned"])
def test_low_precision_decoding_and_files(scale, tmp_path):
    checks.check_low_precision("bfloat16", scale=scale)
    checks.check_low_precision("mixed_float16", scale=scale)
    checks.check_decoding(scale=scale, sliding_window=4)
    checks.check_files(tmp_path, "sequential", scale=scale)
    checks.check_int8(scale=scale)


def test_masked_out_nan_reaches_no_gradient():
    checks.check_masked_nonfinite(scale="learned")


def test_an_overridden_attention_cannot_lose_a_scale():
    class Overridden(ka.GroupQueryAttention):
        def _compute_attention(self, *args, **options):
            return super()._compute_attention(*args, **options)

    layer = Overridden(H, N, K, scale=0.3)
    x = np.zeros((2, T, D), "float32")
    with pytest.raises(ValueError, match=r"overrides.*`scale` would be lost"):
        layer(x)


def test_checkpoints_and_lora():
    layer = grouped(scale="learned", use_bias=False)
    layer.build((2, T, D))
    rng = np.random.default_rng(7)
    shapes = {"query": (N * H, D), "key": (K * H, D), "value": (K * H, D), "output": (D, N * H)}
    given = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match='`scale` is missing: the layer was made with `scale="'):
        ka.load_projections(layer, **given)
    ka.load_projections(layer, **given, scale=np.arange(H))
    np.testing.assert_array_equal(to_numpy(layer.per_dim_scale), np.arange(H))


# By position ----------------------------------------------------------------------------------

SCALES = {
    "llama4": ScaleByPosition(attn_scale=0.4, floor_scale=3),
    "ministral": ScaleByPosition(floor_scale=2, offset=0),
    "log": ScaleByPosition("log", length=3),
}


def factor(scale, position):
    """By hand, one position at a time."""
    options = scale.options
    if scale.type == "log":
        return max(1.0, math.log(position + 1) / math.log(options["length"]))
    steps = math.floor((position + options["offset"]) / options["floor_scale"])
    return 1.0 + options["attn_scale"] * math.log(1.0 + steps)


def test_factors_of_positions_worked_by_hand():
    at = np.array([[-2, 0, 1, 2, 8], [5, 6, 26, 80, 81]])
    for scale, expected in (
        (ScaleByPosition("log", length=3), [[1, 1, 1, 1, 2], [np.log(6) / np.log(3), 0, 3, 0, 0]]),
        (
            ScaleByPosition(attn_scale=1 / np.log(2), floor_scale=3),
            [[1, 1, 1, 2, 3], [np.log2(3) + 1, 0, np.log2(10) + 1, 0, 0]],
        ),
    ):
        found = to_numpy(scale.factors(tensor(at), "float32"))
        expected = np.array(expected, float)
        if scale.type == "llama4":
            expected[0, 4] = 1 + np.log2(4)
        known = expected > 0
        np.testing.assert_allclose(found[known], expected[known], rtol=1e-6)


def test_learned_factors_are_of_float64(doubles):
    weight = np.array([-9.0, -0.3, 0.0, 0.7, 30.0])
    found = to_numpy(per_dimension_factor(tensor(weight, "float64"), "float64"))
    expected = np.log1p(np.exp(weight)) / np.log(2)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("name", SCALES)
def test_queries_are_scaled_by_their_positions(name):
    scale = SCALES[name]

    def make(**options):
        return grouped(query_scale=scale, position=ka.RotaryPosition(theta=50.0), **options)

    wanted = {"query_scale": lambda at: factor(scale, at), "rotary": 50.0}
    checks.check_against_reference(make, wanted, cross=name == "log")
    if name == "llama4":
        positions = np.random.default_rng(3).integers(0, 40, (checks.B, checks.T))
        checks.check_against_reference(make, wanted, positions=positions)


@pytest.mark.parametrize("position", [None, "rotary"])
def test_positions_come_from_the_cache(position):
    made = {"position": ka.RotaryPosition(theta=50.0)} if position else {}
    for scale in sampled(SCALES.values(), 3):
        checks.check_decoding(query_scale=scale, **made)
    checks.check_decoding(query_scale=SCALES["llama4"], sliding_window=3, **made)
    checks.check_cross_decoding(query_scale=SCALES["llama4"], scale="learned", **made)


def test_scales_by_position_are_saved(tmp_path):
    for i, scale in enumerate(SCALES.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        checks.check_files(folder, "sequential", query_scale=scale)
        checks.check_low_precision("mixed_bfloat16", query_scale=scale)
    checks.check_masked_nonfinite(query_scale=scale)
    config = grouped(query_scale={"type": "llama4"}).get_config()["query_scale"]
    assert config == {"type": "llama4", "attn_scale": 0.1, "floor_scale": 8192.0, "offset": 1.0}
    assert grouped(query_scale=config).query_scale == ScaleByPosition()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("log", "`query_scale` must be `None`, a `ScaleByPosition"),
        ({"kind": "log"}, "`query_scale` must be `None`"),
        ({"type": "logn"}, "`type` must be one of"),
        ({"type": "log"}, "`length` must be a number above 1. Received: length=None"),
        ({"type": "log", "length": 1}, "`length` must be a number above 1"),
        ({"type": "log", "length": 9, "offset": 1}, "takes.*'length'.*Received: offset=1"),
        ({"floor_scale": 0}, "`floor_scale` must be a number of at least 1e-6"),
        ({"attn_scale": float("nan")}, "`attn_scale` must be a number of at least 0"),
    ],
)
def test_scales_by_position_that_do_not_fit_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        grouped(query_scale=value)


if BACKEND == "torch":

    def test_the_learned_scale_is_that_of_timesfm():
        torch = pytest.importorskip("torch")
        pytest.importorskip("transformers")
        from transformers.models.timesfm.modeling_timesfm import TimesFmAttention

        class Attention(TimesFmAttention):
            def __init__(self):
                torch.nn.Module.__init__(self)
                self.head_dim = H
                self.scaling = torch.nn.Parameter(torch.randn(H))

        theirs = Attention()
        query = torch.randn(2, N, T, H)
        expected = theirs._scale_query(query) * H**0.5
        factor = per_dimension_factor(theirs.scaling, "float32")
        np.testing.assert_allclose(
            (query * factor).detach().numpy(), expected.detach().numpy(), rtol=1e-6
        )

    def test_scales_by_position_are_those_of_transformers():
        torch = pytest.importorskip("torch")
        pytest.importorskip("transformers")
        from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

        positions = torch.arange(40)[None]
        expected = get_llama_4_attn_scale(positions, 0.3, 7)[:, 0, :, 0]
        scale = ScaleByPosition(attn_scale=0.3, floor_scale=7, offset=0)
        found = scale.factors(positions, "float32")
        np.testing.assert_allclose(to_numpy(found), expected.numpy(), rtol=1e-6)

    @pytest.mark.parametrize("rotary", [False, True])
    def test_the_attention_of_llama_4_is_ours(rotary):
        """Its layers without positions scale queries, its rotary ones normalise after them."""
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        from transformers.models.llama4.modeling_llama4 import Llama4TextAttention

        config = transformers.Llama4TextConfig(
            hidden_size=D,
            head_dim=H,
            num_attention_heads=N,
            num_key_value_heads=K,
            num_hidden_layers=1,
            attention_bias=False,
            floor_scale=3,
            attn_temperature_tuning=True,
            use_qk_norm=True,
            no_rope_layers=[int(rotary)],
            rms_norm_eps=1e-5,
        )
        config._attn_implementation = "eager"
        theirs = Llama4TextAttention(config, 0)
        randomize(theirs)
        norm = {"learned": False, "after_position": True, "epsilon": 1e-5}
        options = {"qk_norm": norm, "position": ka.RotaryPosition(50.0, layout="interleaved")}
        layer = grouped(
            use_bias=False,
            use_causal_mask=True,
            **(options if rotary else {"query_scale": ScaleByPosition(floor_scale=3)}),
        )
        layer.build((2, T, D))
        given = {
            "query": theirs.q_proj.weight,
            "key": theirs.k_proj.weight,
            "value": theirs.v_proj.weight,
            "output": theirs.o_proj.weight,
        }
        ka.load_projections(layer, **given)
        x = torch.randn(2, T, D)
        frequencies = torch.tensor(options["position"].frequencies(H).values).float()
        angles = torch.arange(T)[None, :, None] * frequencies
        turned = torch.polar(torch.ones_like(angles), angles).expand(2, -1, -1)
        expected, _ = theirs(x, turned, additive(np.tri(T, dtype=bool)))
        np.testing.assert_allclose(
            to_numpy(layer(x)), expected.detach().numpy(), rtol=1e-5, atol=1e-5
        )

    def test_the_attention_of_timesfm_2_5_is_ours():
        """Rotary positions, then norms, then the learned scale."""
        torch = pytest.importorskip("torch")
        pytest.importorskip("transformers")
        from transformers.models.timesfm2_5.configuration_timesfm2_5 import TimesFm2_5Config
        from transformers.models.timesfm2_5.modeling_timesfm2_5 import TimesFm2_5Attention

        config = TimesFm2_5Config(
            hidden_size=D,
            head_dim=H,
            num_attention_heads=N,
            num_key_value_heads=K,
            attention_bias=False,
            rms_norm_eps=1e-6,
        )
        config._attn_implementation = "eager"
        theirs = TimesFm2_5Attention(config, 0)
        randomize(theirs)
        position = ka.RotaryPosition(50.0)
        options = {"qk_norm": {"after_position": True}, "position": position, "scale": "learned"}
        layer = grouped(use_bias=False, use_causal_mask=True, **options)
        layer.build((2, T, D))
        ka.load_projections(
            layer,
            query=theirs.q_proj.weight,
            key=theirs.k_proj.weight,
            value=theirs.v_proj.weight,
            output=theirs.o_proj.weight,
            query_norm=theirs.q_norm.weight,
            key_norm=theirs.k_norm.weight,
            scale=theirs.scaling,
        )
        x = torch.randn(2, T, D)
        angles = torch.arange(T)[:, None] * torch.tensor(position.frequencies(H).values).float()
        angles = torch.cat([angles, angles], dim=-1)[None]
        expected, _ = theirs(x, (angles.cos(), angles.sin()), additive(np.tri(T, dtype=bool)))
        np.testing.assert_allclose(
            to_numpy(layer(x)), expected.detach().numpy(), rtol=1e-5, atol=1e-5
        )
