"""Runs one configuration on the backend: results, gradients and second derivatives as NumPy."""

import contextlib
import functools

import keras
import numpy as np
from draws import bias_dtype, compute_dtype
from keras import ops

import kerasattention as ka
from problems import block_size

try:
    from keras.src.backend import set_keras_mask
except ImportError:  # a Keras that moved it
    from kerasattention._keras import set_keras_mask

BACKEND = keras.backend.backend()
FLOATS = ("query", "value", "key", "attention_bias", "sink")


def precision(config):
    """JAX has float64 only where it is asked for."""
    if BACKEND == "jax" and config["dtype"] == "float64":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


def blocks(config):
    return contextlib.nullcontext() if config["block"] is None else block_size(config["block"])


def made_layer(config):
    options = {
        "dropout": config["rate"],
        "use_bias": config["use_bias"],
        "flash_attention": config["flash"],
        "sliding_window": config["window"],
        "use_gate": config["gate"],
        "position": made_position(config["position"], config["dtype"]),
        "logit_soft_cap": config["cap"],
        "attention_sink": config["sink"],
        "scale": config["scale"],
        "query_scale": config["query_scale"],
        "use_causal_mask": config["causal_layer"],
        "mask": made_mask(config["rule"]),
        "dtype": config["dtype"],
        "seed": 7,
    }
    if config["kind"] == "mla":
        names = ("query_rank", "rotary_dim")
        sizes = {name: config[name] for name in names} | {"value_dim": config["Hv"]}
        return ka.LatentAttention(config["N"], config["H"], config["rank"], **sizes, **options)
    options |= {"qk_norm": config["qk_norm"] or False, "value_norm": config["value_norm"]}
    options["use_key_as_value"] = config["key_as_value"]
    if config["kind"] == "gqa":
        return ka.GroupQueryAttention(config["H"], config["N"], config["K"], **options)
    return ka.MultiHeadAttention(
        config["N"],
        config["H"],
        config["Hv"],
        output_shape=config["output_shape"],
        attention_axes=config["axes"],
        **options,
    )


def made_mask(described):
    if described is None:
        return None
    kind, *given = described
    if kind in ("and", "or", "not"):
        masks = [made_mask(part) for part in given]
        if kind == "not":
            return ~masks[0]
        return masks[0] & masks[1] if kind == "and" else masks[0] | masks[1]
    if kind == "function":
        return ka.MaskFunction(functools.partial(function_rule, given[0]))
    made = {
        "causal": ka.CausalMask,
        "window": ka.WindowMask,
        "chunk": ka.ChunkMask,
        "prefix": ka.PrefixMask,
        "dilated": ka.DilatedMask,
        "blocks": ka.BlockMask,
    }
    return made[kind](*given)


def function_rule(number, queries, keys):
    return (queries + 2 * keys) % 5 < number % 5


def made_position(described, dtype):
    if described is None:
        return None
    options = {name: x for name, x in described.items() if name != "kind"}
    kind = described["kind"]
    if kind == "rotary":
        return ka.RotaryPosition(**options)
    if kind == "alibi":
        return ka.AlibiPosition()
    if kind == "relative keys":
        options["kind"] = options.pop("type")
        return ka.RelativeKeysPosition(**options, dtype=dtype)
    if kind == "grid":
        options["axes"] = len(options["max_distance"])
    return ka.RelativePosition(**options, dtype=dtype)


# Of layers and of their positions, whose names have numbers.
SINGLE_NAMES = ("sink", "per_dim_scale", "table", "key_table", "query_table")
SINGLE_NAMES += ("position_kernel", "content_bias", "position_bias")


def weight_name(variable):
    """ "query/kernel", "sink", "per_dim_scale" or "table"."""
    parts = variable.path.split("/")
    return parts[-1] if parts[-1] in SINGLE_NAMES else "/".join(parts[-2:])


class Subject:
    """A layer or the function, ready to be called with many inputs of one form."""

    def __init__(self, config):
        self.config = config
        self.layer = None
        self.words = None
        self.compiled = None
        if config["kind"] != "function":
            self.layer = made_layer(config)
            shapes = [(None, *config["lengths"], config["D"])]
            if config["form"] in ("value", "key"):
                shapes.append((None, *config["others"], config["Dv"]))
            if config["form"] == "key":
                shapes.append((None, *config["others"], config["Dk"]))
            self.layer.build(*shapes)

    def weight_shapes(self):
        if self.layer is None:
            return {}
        return {weight_name(v): tuple(v.shape) for v in self.layer.trainable_variables}

    def variables(self):
        return [] if self.layer is None else self.layer.trainable_variables

    def seed_words(self):
        """What the layer's next call draws for its dropout."""
        if self.layer is None or not (self.config["rate"] and self.config["training"]):
            return None
        state = self.layer._dropout_layer.seed_generator.state
        return [int(word) & 0x7FFFFFFF for word in np.asarray(ops.convert_to_numpy(state.value))]

    def forward(self, given):
        """The output and the scores (or None) of tensors by name."""
        config = self.config
        if self.layer is None:
            segments = given.get("segment_ids")
            if "query_segments" in given:
                segments = (given["query_segments"], given["key_segments"])
            result = ka.scaled_dot_product_attention(
                given["query"],
                given["key"],
                given["value"],
                attention_mask=given.get("attention_mask"),
                attention_bias=given.get("attention_bias"),
                causal=config["causal"],
                sliding_window=config["window"],
                segment_ids=segments,
                scale=config["scale"],
                logit_soft_cap=config["cap"],
                sink=given.get("sink"),
                dropout=config["rate"],
                seed=given.get("seed"),
                return_scores=config["scores"],
                implementation=config["implementation"],
            )
            return result if config["scores"] else (result, None)
        inputs = {name: given[name] for name in ("query", "value", "key") if name in given}
        for name, x in inputs.items():
            if f"{name} attached" in given:
                set_keras_mask(x, given[f"{name} attached"])
        if config["form"] in ("same", "same3"):
            inputs["value"] = inputs["query"]
        if config["form"] == "same3":
            inputs["key"] = inputs["query"]
        names = ("query_mask", "value_mask", "key_mask", "attention_mask", "attention_bias")
        names += ("segment_ids", "positions", "bidirectional")
        options = {name: given[name] for name in names if name in given}
        if config["causal"] is not None:
            options["use_causal_mask"] = config["causal"]
        if config["training"] is not None:
            options["training"] = config["training"]
        result = self.layer(**inputs, **options, return_attention_scores=config["scores"])
        return result if config["scores"] else (result, None)

    def loss(self, given, upstreams):
        output, scores = self.forward(given)
        total = weighed(output, upstreams["output"])
        if scores is not None and self.config["differentiate_scores"]:
            total = total + weighed(scores, upstreams["scores"])
        return total, (output, scores)

    def tensors(self, data):
        """The arrays as tensors of the dtypes that the configuration names."""
        config, found = self.config, {}
        for name, x in data.items():
            if name in ("query", "value", "key"):
                dtype = compute_dtype(config["dtype"])
            elif name == "attention_bias":
                dtype = bias_dtype(config)
            elif name == "sink":
                dtype = "float64" if config["dtype"] == "float64" else "float32"
            elif name == "attention_mask":
                dtype = config["mask_dtype"]
            elif name == "seed words":
                continue
            elif name == "seed":
                found[name] = tensor(np.array([x, 0]), "int32")
                continue
            else:
                dtype = {"i": "int32", "f": "float32"}.get(np.asarray(x).dtype.kind, "bool")
            found[name] = tensor(x, dtype)
        return found

    def results(self, data, weights, upstreams, directions=None):
        """Results by name, as `Yardstick` has them; with `directions` second derivatives too."""
        given = self.tensors(data)
        wide = "float64" if self.config["dtype"] == "float64" else "float32"
        upstreams = {name: tensor(x, wide) for name, x in upstreams.items()}
        if directions is not None:
            directions = {name: tensor(x, wide) for name, x in directions.items()}
        for variable in self.variables():
            variable.assign(weights[weight_name(variable)])
        names = [name for name in FLOATS if name in given]
        run = {"torch": run_torch, "tensorflow": run_tensorflow, "jax": run_jax}[BACKEND]
        (output, scores), gradients, seconds = run(self, given, names, upstreams, directions)
        found = {"output": output}
        if scores is not None:
            found["scores"] = scores
        found |= {f"gradient of {name}": x for name, x in gradients.items()}
        found |= {f"second of {name}": x for name, x in seconds.items()}
        return {name: numpy(x) for name, x in found.items()}


def tensor(x, dtype):
    return ops.convert_to_tensor(np.asarray(x), dtype=dtype)


def numpy(x):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        if isinstance(x, tf.IndexedSlices):
            x = tf.convert_to_tensor(x)
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        x = ops.cast(x, "float32")
    return np.asarray(ops.convert_to_numpy(x), dtype=np.float64)


def weighed(x, upstream):
    return ops.sum(ops.cast(x, upstream.dtype) * upstream)


def inner(gradients, directions, dtype):
    return sum(weighed(gradients[name], directions[name]) for name in directions)


def run_torch(subject, given, names, upstreams, directions):
    import torch

    leaves = {name: given[name].detach().requires_grad_(True) for name in names}
    given = given | leaves
    all_leaves = leaves | {weight_name(v): v.value for v in subject.variables()}
    total, outputs = subject.loss(given, upstreams)
    found = torch.autograd.grad(
        total, list(all_leaves.values()), allow_unused=True, create_graph=directions is not None
    )
    gradients = filled(all_leaves, found)
    seconds = {}
    if directions is not None:
        product = inner(gradients, directions, None)
        second = torch.autograd.grad(product, list(all_leaves.values()), allow_unused=True)
        seconds = filled(all_leaves, second)
    detached = [None if x is None else x.detach() for x in outputs]
    return detached, {n: g.detach() for n, g in gradients.items()}, seconds


def filled(leaves, gradients):
    """None, of what a result does not depend on, as zeros."""
    return {
        name: ops.zeros_like(x) if gradient is None else gradient
        for (name, x), gradient in zip(leaves.items(), gradients, strict=True)
    }


def run_tensorflow(subject, given, names, upstreams, directions):
    import tensorflow as tf

    config = subject.config
    variables = {weight_name(v): v.value for v in subject.variables()}

    def once(given, upstreams, directions):
        leaves = {name: given[name] for name in names}
        everything = leaves | variables
        with tf.GradientTape() as outer:
            outer.watch(leaves)
            with tf.GradientTape() as tape:
                tape.watch(leaves)
                total, outputs = subject.loss(given, upstreams)
            found = tape.gradient(total, list(everything.values()))
            gradients = filled(everything, [dense(x) for x in found])
            product = None if directions is None else inner(gradients, directions, None)
        seconds = {}
        if directions is not None:
            second = outer.gradient(product, list(everything.values()))
            seconds = filled(everything, [dense(x) for x in second])
        return outputs, gradients, seconds

    def dense(x):
        return tf.convert_to_tensor(x) if isinstance(x, tf.IndexedSlices) else x

    if config["mode"] == "eager":
        return once(given, upstreams, directions)
    if subject.compiled is None:
        signature = None
        spec = {"unknown": unknown_spec, "unknown batch": unknown_batch_spec}.get(config["mode"])
        if spec is not None:
            signature = [
                {name: spec(name, x, config) for name, x in part.items()}
                for part in (given, upstreams)
            ]
            if directions is None:
                subject.compiled = tf.function(
                    lambda given, upstreams: once(given, upstreams, None),
                    input_signature=signature,
                )
        if subject.compiled is None:
            subject.compiled = tf.function(once, jit_compile=config["mode"] == "xla")
    arguments = (given, upstreams, directions)
    if config["mode"].startswith("unknown") and directions is None:
        arguments = arguments[:2]
    return subject.compiled(*arguments)


def unknown_batch_spec(name, x, config):
    """All known but the batch, as in `fit()` with a smaller last batch."""
    import tensorflow as tf

    forms = {"attention_mask": config["mask"], "attention_bias": config["bias"]}
    form = forms.get(name, [True])
    shape = list(x.shape)
    if name not in ("sink", "seed") and form and form[0]:
        shape[0] = None
    return tf.TensorSpec(shape, x.dtype)


def unknown_spec(name, x, config):
    """Batch and lengths unknown, heads and features known."""
    import tensorflow as tf

    shape = [None] * len(x.shape)
    if name == "positions" and len(x.shape) == 3:
        shape[-1] = x.shape[-1]
    if name in ("query", "key", "value", "output", "sink", "seed"):
        kept = 2 if config["kind"] == "function" else 1
        if name == "output" and isinstance(config.get("output_shape"), tuple):
            kept = 2
        shape[-kept:] = x.shape[-kept:]
    elif name == "scores":
        axis = 1 if config["kind"] == "function" or len(x.shape) == 4 else None
        shape = list(x.shape) if axis is None else shape
        if axis is not None:
            shape[1] = x.shape[1]
    elif name in ("attention_mask", "attention_bias"):
        # Which axes are 1 is known, as are heads.
        shape = [
            size if size == 1 or axis < len(x.shape) - 2 else None
            for axis, size in enumerate(x.shape)
        ]
    return tf.TensorSpec(shape, x.dtype)


def run_jax(subject, given, names, upstreams, directions):
    import jax

    config, layer = subject.config, subject.layer
    variables = {weight_name(v): v.value for v in subject.variables()}
    state = [] if layer is None else [v.value for v in layer.non_trainable_variables]

    def loss(leaves, rest, state, upstreams):
        given = rest | {name: leaves[name] for name in names}
        if layer is None:
            return subject.loss(given, upstreams)
        pairs = [(v, leaves[weight_name(v)]) for v in layer.trainable_variables]
        pairs += list(zip(layer.non_trainable_variables, state, strict=True))
        with keras.StatelessScope(state_mapping=pairs):
            return subject.loss(given, upstreams)

    def once(leaves, rest, state, upstreams, directions):
        def gradients_of(leaves):
            found = jax.value_and_grad(loss, has_aux=True)(leaves, rest, state, upstreams)
            return found[1], found[0][1]

        gradients, outputs = gradients_of(leaves)
        seconds = {}
        if directions is not None:
            seconds = jax.grad(lambda leaves: inner(gradients_of(leaves)[0], directions, None))(
                leaves
            )
        return outputs, gradients, seconds

    if subject.compiled is None:
        subject.compiled = jax.jit(once) if config["mode"] == "jit" else once
    leaves = {name: given[name] for name in names} | variables
    rest = {name: x for name, x in given.items() if name not in names}
    return subject.compiled(leaves, rest, state, upstreams, directions)
