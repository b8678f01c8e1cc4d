"""How shared calls behave, case by case; run by `sharded_cases.py` on 8 simulated devices.

Each case returns differences by name, which must be small, or texts.
"""

import contextlib
import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import PartitionSpec

import kerasattention as ka
from kerasattention.attend import api
from sharded_models import HeadParallel, data_parallel, model_parallel

B, T, S, N, K, H, D = 8, 24, 21, 8, 2, 4, 12


@contextlib.contextmanager
def under(distribution):
    keras.distribution.set_distribution(distribution)
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def difference(a, b):
    """The largest difference, for large numbers relative; NaN and infinities must be the same."""
    a, b = (np.asarray(x).astype("float64") for x in (a, b))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    largest = np.max(np.abs(b), initial=1.0, where=np.isfinite(b))
    return float(np.max(np.where(same, 0.0, np.abs(a - b)), initial=0.0) / largest)


def on_and_off(function, distribution):
    """The largest difference of each result with and without a distribution."""
    with under(distribution):
        shared = jax.tree.leaves(function())
    jax.clear_caches()  # of what was traced under the distribution
    whole = jax.tree.leaves(function())
    return {str(i): difference(*pair) for i, pair in enumerate(zip(shared, whole, strict=True))}


def made_layer(**options):
    keras.utils.set_random_seed(5)
    layer = ka.GroupQueryAttention(H, N, K, name="attn", **options)
    layer.build((None, None, D))
    return layer


def heads():
    return HeadParallel(2, 2, 2)


# Functions ---------------------------------------------------------------------------------


def mask_bias_and_scores():
    query, key, value = numbers(B, T, N, H), numbers(B, S, K, H, seed=1), numbers(B, S, K, 3)
    masks = numbers(B, N, T, S, seed=2) > -0.5
    biases = [numbers(1, N, T, 1, seed=3), numbers(B, 1, 1, S, seed=4)]

    def total(query, key, value, bias):
        mask = ka.attend.api.expand_mask(jnp.asarray(masks), "mask")
        output, scores = api.attend(
            *(query, key, value),
            api.AttentionMask(mask=mask),
            biases=[api.TensorBias(x) for x in bias],
            sink=jnp.linspace(-1.0, 1.0, N),
            rate=0.25,
            seed=3,
            return_scores=True,
            head_axes=api.HeadAxes(("model_kv", "model_rep"), ("model_kv",)),
        )
        return jnp.sum(output**3), (output, scores)

    function = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))
    return on_and_off(lambda: function(query, key, value, biases), heads())


def eager_calls():
    x = numbers(B, T, D)

    def function():
        layer = made_layer(attention_sink=True, position=ka.AlibiPosition())
        return layer(x, use_causal_mask=True), *layer(x, return_attention_scores=True)

    found = on_and_off(function, heads())
    return found | {f"data {i}": x for i, x in on_and_off(function, data_parallel()).items()}


def second_derivatives():
    query, key, value = numbers(B, T, N, H), numbers(B, S, K, H, seed=1), numbers(B, S, K, 3)

    def function():
        def total(query):
            output = ka.scaled_dot_product_attention(
                query, key, value, causal=True, implementation="blocked"
            )
            return jnp.sum(output**3)

        along = numbers(B, T, N, H, seed=9)
        forward = jax.jvp(jax.grad(total), (query,), (along,))[1]
        reverse = jax.grad(lambda x: jnp.sum(jax.grad(total)(x) * along))(query)
        return forward, reverse

    return on_and_off(jax.jit(function), data_parallel())


def not_finite():
    """NaN in a masked-out token has no effect; others poison the same rows and gradients."""
    x = numbers(B, T, D)
    x[1, T - 1], x[2, 3], x[3, 5, 2] = np.nan, np.inf, np.nan
    real = np.ones((B, T), "bool")
    real[1, T - 2 :] = False

    def function():
        layer = made_layer()

        def total(x, state):
            output = layer.stateless_call(state, [], x, query_mask=real, use_causal_mask=True)[0]
            return jnp.sum(output[:, :3] ** 2), output

        state = [v.value for v in layer.trainable_variables]
        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(x, state)

    return on_and_off(function, heads())


def other_models():
    """Recomputed, of low precision, with LoRA and quantised."""
    x, found = numbers(B, T, D), {}

    def output(change=lambda layer: None, **options):
        layer = made_layer(**options)
        change(layer)
        return jax.jit(lambda x: layer(x, use_causal_mask=True))(x)

    def recomputed():
        with keras.RematScope("full"):
            return output()

    def with_lora(layer):
        for dense in layer.projections().values():
            dense.enable_lora(2)

    def quantised(layer):
        for dense in layer.projections().values():
            dense.quantize("int8")

    functions = {
        "recomputed": recomputed,
        "float16": lambda: output(dtype="mixed_float16"),
        "bfloat16": lambda: output(dtype="mixed_bfloat16"),
        "lora": lambda: output(with_lora),
        "int8": lambda: output(quantised),
        "axes": lambda: _attended_axes(x),
    }
    for name, function in functions.items():
        found[name] = on_and_off(function, heads())["0"]
    return found


def _attended_axes(x):
    keras.utils.set_random_seed(5)
    layer = ka.MultiHeadAttention(N, H, attention_axes=(2,))
    return jax.jit(layer)(x.reshape(B, 4, T // 4, D))


# Where nothing is shared ---------------------------------------------------------------------


def programs():
    """Traced programs: equal where nothing is shared, another where something is."""
    query, key = numbers(3, T, N, H), numbers(3, S, K, H)

    def program(*arrays):
        traced = jax.make_jaxpr(lambda *x: ka.scaled_dot_product_attention(*x, causal=True))(
            *arrays
        )
        return re.sub(r"0x[0-9a-f]+", "", str(traced))

    find, api.find_share = api.find_share, lambda *given: None
    whole = program(query, key, key)
    api.find_share = find
    found = {"no distribution": program(query, key, key) == whole}
    with under(data_parallel()):
        found["a batch of 3 on 8 devices"] = program(query, key, key) == whole
        empty = [x[:0] for x in (query, key, key)]
        found["an empty batch"] = "shard_map" not in program(*empty)
    one = keras.distribution.DataParallel(devices=["cpu:0"])
    with under(one):
        found["a mesh of one device"] = program(query, key, key) == whole
    with under(keras.distribution.DataParallel(devices=["cpu:0", "cpu:1", "cpu:2"])):
        found["a batch of 3 on 3 devices is shared"] = "shard_map" in program(query, key, key)
    return found


def elsewhere():
    """Arrays of another device, and a `shard_map()` of the user's."""
    query, key = numbers(B, T, N, H), numbers(B, S, K, H)
    whole = ka.scaled_dot_product_attention(query, key, key)
    found = {}
    with under(data_parallel()):
        mesh = keras.distribution.distribution().device_mesh.backend_mesh
        last = [jax.device_put(x, jax.devices()[-1]) for x in (query, key, key)]
        found["device"] = difference(ka.scaled_dot_product_attention(*last), whole)
        spec = PartitionSpec("batch")
        function = jax.shard_map(
            ka.scaled_dot_product_attention, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec
        )
        found["shard_map"] = difference(jax.jit(function)(query, key, key), whole)
        # A model made under another distribution, and one made without.
        x = numbers(B, T, D)
        expected = made_layer()(x)
        with under(heads()):
            layer = made_layer()
        with under(data_parallel()):
            found["another mesh"] = difference(layer(x), expected)
        layer = made_layer()
        with under(heads()):
            found["made without"] = difference(layer(x), expected)
    # Kernels split over the axis of the batch, to save memory.
    mesh = keras.distribution.DeviceMesh((8,), ["batch"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*query/kernel"] = (None, "batch", None)
    with under(keras.distribution.ModelParallel(layout_map=layouts)):
        found["split over the batch's axis"] = difference(jax.jit(made_layer())(x), expected)
    with under(data_parallel()):
        many = jax.vmap(ka.scaled_dot_product_attention)
        found["vmap"] = difference(many(*(x[None] for x in (query, key, key)))[0], whole)
    return found


def split_tokens():
    """A layout that splits tokens is refused, unless over the axis of the heads."""
    x, found = numbers(B, T, D), {}

    def function():
        inputs = keras.Input((T, D))
        y = keras.layers.Dense(D, name="before")(inputs)
        keras.utils.set_random_seed(5)
        y = ka.GroupQueryAttention(H, N, N, name="attn")(y)
        return keras.Model(inputs, y).predict(x, verbose=0)

    with under(model_parallel(2, 4, **{".*before/output": ("rows", "cols", None)})):
        keras.utils.set_random_seed(5)
        shared = function()
    keras.utils.set_random_seed(5)
    found["over the axis of the heads"] = difference(shared, function())
    with under(_TokensSplit(2, 4, 1)):
        found["message of data"] = _message(function)
    mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "seq"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["before/output"] = ("batch", "seq", None)
    with under(keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")):
        found["message"] = _message(function)
    return found


class _TokensSplit(HeadParallel):
    """Splits the tokens of the data, and no heads."""

    def get_variable_layout(self, variable):
        return keras.distribution.TensorLayout((None,) * len(variable.shape), self.device_mesh)

    def get_data_layout(self, shape):
        axes = ("batch", "model_kv", *(None for _ in shape[2:]))
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _message(function):
    try:
        function()
    except ValueError as error:
        return str(error)
    return "none"


CASES = {
    function.__name__.replace("_", " "): function
    for function in (
        *(mask_bias_and_scores, eager_calls, second_derivatives, not_finite, other_models),
        *(programs, elsewhere, split_tokens),
    )
}
