"""Draws the configurations of layers and function calls, and their inputs, from a seed.

A configuration fixes everything that is compiled: options, shapes, dtypes, which arguments are
given. Several draws of inputs share it. Shape letters as in `tests/python/reference.py`.
"""

import math

import ml_dtypes
import numpy as np

LENGTHS = (1, 1, 2, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
LONG = (64, 127, 257, 513, 521, 547)
MASK_DTYPES = ("bool", "bool", "int32", "float32", "uint8", "int64")
DTYPES = {
    "float32": 6,
    "float64": 2,
    "float16": 1,
    "bfloat16": 1,
    "mixed_float16": 1,
    "mixed_bfloat16": 1,
}
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SMALLEST = {"float64": 0.0, "float32": 1e-38, "float16": 2.0**-24, "bfloat16": 1e-38}


def compute_dtype(policy):
    return policy.removeprefix("mixed_")


def round_to(x, dtype):
    """The nearest numbers that a dtype can hold, in float64."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.asarray(x, dtype=np.float64).astype(kind).astype(np.float64)


def pick(rng, *options):
    return options[int(rng.integers(len(options)))]


def chance(rng, p):
    return bool(rng.random() < p)


def maybe(rng, p, make):
    return make() if chance(rng, p) else None


def configuration(rng, modes, without=()):
    """A dictionary of everything that a case has in common with others of its group."""
    names, weights = zip(*DTYPES.items(), strict=True)
    dtype = str(rng.choice(names, p=np.array(weights) / sum(weights)))
    if dtype == "float64" and "float64" in without:
        dtype = "float32"
    kind = pick(rng, *["mha"] * 4, *["gqa"] * 4, "mla", *["function"] * 2)
    mode_names, mode_weights = zip(*modes.items(), strict=True)
    common = {
        "kind": kind,
        "dtype": dtype,
        "mode": str(rng.choice(mode_names, p=np.array(mode_weights) / sum(mode_weights))),
        "B": 0 if chance(rng, 0.02) and "empty" not in without else pick(rng, 1, 2, 2, 3),
        "block": pick(rng, None, None, 3, 7),
        "scores": chance(rng, 0.35),
        "differentiate_scores": chance(rng, 0.5),
        "second": chance(rng, 0.12),
        "poison": chance(rng, 0.12),
    }
    if "second" in without or compute_dtype(dtype) not in ("float32", "float64"):
        common["second"] = False
    if "nan" in without:
        common["poison"] = False
    config = common | (function_call(rng) if kind == "function" else layer_call(rng, kind))
    if config.get("flash") and chance(rng, 0.8):
        config["scores"] = False  # together they are refused
    if config["dtype"] == "float64" and "norm64" in without and config.get("qk_norm"):
        config["qk_norm"] = False
    kind = (config.get("position") or {}).get("kind")
    if config["dtype"] == "float64" and "table64" in without and kind == "relative":
        config["position"] = None
    return in_measure(config)


def in_measure(config):
    """Long sequences have few heads and larger blocks, or they take the time of hundreds."""
    lengths = [config["T"], config["S"]] if "T" in config else config["lengths"] + config["others"]
    if max(lengths) > 50:
        config |= {"B": min(config["B"], 1), "block": None, "N": config["N"] // config["K"], "K": 1}
        config["N"] = min(config["N"], 2)
    return config


def length(rng):
    return pick(rng, *LONG) if chance(rng, 0.04) else pick(rng, *LENGTHS)


def other_length(rng, T):
    """Often the same, else any."""
    return T if chance(rng, 0.4) else length(rng)


def function_call(rng):
    K, G = pick(rng, 1, 2, 3), pick(rng, 1, 1, 2, 3, 5)
    T = length(rng)
    H = pick(rng, 1, 2, 3, 4, 8, 13)
    return {
        "K": K,
        "N": K * G,
        "H": H,
        "Hv": H if chance(rng, 0.5) else pick(rng, 1, 2, 5, 8, 11),
        "T": T,
        "S": other_length(rng, T),
        "causal": chance(rng, 0.4),
        "window": maybe(rng, 0.3, lambda: int(rng.integers(1, T + 4))),
        "scale": maybe(rng, 0.3, lambda: round(float(rng.uniform(0.05, 2.0)), 3)),
        "cap": maybe(rng, 0.25, lambda: pick(rng, 0.5, 2.0, 30.0)),
        "sink": chance(rng, 0.3),
        "rate": pick(rng, 0.0, 0.0, 0.0, 0.1, 0.5, 0.9),
        "mask": maybe(rng, 0.45, lambda: scores_form(rng, 1)),
        "mask_dtype": pick(rng, *MASK_DTYPES),
        "bias": maybe(rng, 0.35, lambda: scores_form(rng, 1)),
        "bias_infinite": chance(rng, 0.3),
        "bias_dtype": pick(rng, "float32", "compute"),
        "segments": pick(rng, None, None, None, "one", "two"),
        "implementation": pick(rng, None, "plain", "blocked", "blocked", "fused"),
    }


def layer_call(rng, kind):
    K = pick(rng, 1, 2, 3) if kind == "gqa" else pick(rng, 1, 2, 3, 5)
    G = pick(rng, 1, 2, 3, 5) if kind == "gqa" else 1
    rank = 4 if kind == "mha" and chance(rng, 0.2) else 3
    axes = (
        pick(rng, None, (1,), (-2,)) if rank == 3 else pick(rng, None, (1,), (2,), (1, 2), (2, 1))
    )
    axes = None if kind == "gqa" else axes
    lengths, others = drawn_lengths(rng, axes, rank)
    form = pick(rng, "query", "query", "query", "same", "same3", "value", "key")
    form = "query" if kind == "mla" else form
    own = form in ("query", "same", "same3")
    T = math.prod(lengths[axis - 1] for axis in resolved_axes(axes, rank))
    attended = len(resolved_axes(axes, rank))
    paddings = drawn_paddings(rng, form)
    latent = drawn_latent(rng) if kind == "mla" else {}
    position = drawn_position(rng, own, latent.get("rotary_dim"))
    if position and position["kind"] == "relative keys" and G > 1:
        position["type"] = pick(rng, "shaw", "transformer_xl")
        position.pop("num_buckets", None)
    H = position.pop("size") if position and "size" in position else None
    H = latent.get("H") or H or pick(rng, 1, 2, 3, 5, 8, 11)
    coordinates = drawn_coordinates(rng, position, own, attended)
    if position and position["kind"] == "grid" and coordinates != "grid" and chance(rng, 0.3):
        position["class_token"] = True
    values = pick(rng, None, None, 1, 4, 7) if kind != "gqa" else None
    key_as_value = chance(rng, 0.1) and kind != "mla" and form != "key"
    return latent | {
        "K": K,
        "N": K * G,
        "H": H,
        "Hv": None if key_as_value else values,
        "key_as_value": key_as_value,
        "D": pick(rng, 1, 2, 5, 8, 13),
        "Dv": pick(rng, 3, 5, 8),
        "Dk": pick(rng, 2, 7, 8),
        "output_shape": pick(rng, None, None, 3, (2, 5)) if kind == "mha" else None,
        "axes": axes,
        "lengths": lengths,
        "others": lengths if own else others,
        "form": form,
        "use_bias": chance(rng, 0.6),
        "gate": pick(rng, False, False, False, False, True, "head"),
        "qk_norm": maybe(rng, 0.35, lambda: drawn_norm(rng)) if kind != "mla" else None,
        "cap": maybe(rng, 0.2, lambda: pick(rng, 0.5, 2.0, 30.0)),
        "sink": chance(rng, 0.25),
        "scale": pick(rng, None, None, None, 0.05, 1.0, "learned"),
        "value_norm": chance(rng, 0.15) and kind != "mla",
        "query_scale": maybe(rng, 0.2, lambda: drawn_query_scale(rng)),
        "window": maybe(rng, 0.3, lambda: int(rng.integers(1, T + 4))),
        "position": position,
        "rate": pick(rng, 0.0, 0.0, 0.1, 0.5, 0.9),
        "training": pick(rng, None, False, True),
        "flash": pick(rng, None, None, False, True),
        "causal_layer": chance(rng, 0.15),
        "causal": pick(rng, None, None, True, True, False),
        "mask": maybe(rng, 0.4, lambda: scores_form(rng, attended, rank)),
        "mask_dtype": pick(rng, *MASK_DTYPES),
        "bias": maybe(rng, 0.3, lambda: scores_form(rng, attended, rank)),
        "bias_infinite": chance(rng, 0.3),
        "bias_dtype": pick(rng, "float32", "compute"),
        "segments": maybe(rng, 0.25, lambda: pick(rng, "rows", "one")) if own else None,
        "positions": drawn_places(rng, coordinates),
        "coordinates": coordinates,
        "paddings": {name: how for name, how in paddings.items() if how},
        "rule": maybe(rng, 0.3, lambda: mask_rule(rng)),
        "spans": maybe(rng, 0.2, lambda: pick(rng, "rows", "one")) if own else None,
    }


def drawn_query_scale(rng):
    if chance(rng, 0.4):
        return {"type": "log", "length": pick(rng, 2, 5, 512)}
    return {
        "type": "llama4",
        "attn_scale": pick(rng, 0.1, 0.5),
        "floor_scale": pick(rng, 1, 3, 8),
        "offset": pick(rng, 0, 1),
    }


def drawn_norm(rng):
    """True, or a dictionary as the layers take it."""
    if chance(rng, 0.3):
        return True
    kind = pick(rng, "rms", "rms", "layer", "l2")
    norm = {
        "type": kind,
        "over": pick(rng, "head", "head", "width"),
        "epsilon": pick(rng, 1e-6, 1e-5, 0.1),
        "after_position": chance(rng, 0.3),
        "learned": chance(rng, 0.8),
    }
    if norm["learned"]:
        norm["offset"] = pick(rng, 0.0, 0.0, 1.0)
        norm["per_head"] = chance(rng, 0.3)
        norm["bias"] = kind == "layer" and chance(rng, 0.5)
    return norm


def mask_rule(rng, depth=0):
    """A mask as nested lists: an operator or a kind, and its masks or numbers."""
    if depth < 2 and chance(rng, 0.6):
        operator = pick(rng, "and", "and", "or", "or", "not")
        count = 1 if operator == "not" else 2
        return [operator, *(mask_rule(rng, depth + 1) for _ in range(count))]
    kind = pick(rng, "causal", "window", "chunk", "prefix", "dilated", "blocks", "function")
    numbers = {"window": 2, "chunk": 1, "prefix": 1, "dilated": 1, "function": 1}
    if kind == "blocks":
        # For positions below 2048.
        size = pick(rng, 256, 512)
        count = 2048 // size
        return [kind, (rng.random((count, count)) < 0.6).astype(int).tolist(), size]
    return [kind, *(int(rng.integers(1, 15)) for _ in range(numbers.get(kind, 0)))]


def drawn_lengths(rng, axes, rank):
    """The sizes of the axes between batch and features, of the queries and of the keys."""
    if rank == 3:
        lengths = [length(rng)]
        return lengths, [other_length(rng, lengths[0])]
    lengths = [pick(rng, 1, 2, 3, 5), pick(rng, 1, 2, 3, 5, 7)]
    attended = resolved_axes(axes, rank)
    others = [
        other_length(rng, size) if axis in attended and size > 1 and chance(rng, 0.5) else size
        for axis, size in zip((1, 2), lengths, strict=True)
    ]
    others = [
        min(size, 7) if axis in attended else size
        for axis, size in zip((1, 2), others, strict=True)
    ]
    return lengths, others


def drawn_paddings(rng, form):
    """For each input how its mask is given: by name, attached to the tensor, or both."""
    paddings = {
        name: pick(rng, None, None, "explicit", "attached", "both")
        for name in ("query", "value", "key")
        if chance(rng, 0.3)
    }
    given = {"value": ("query", "value"), "key": ("query", "value", "key")}.get(form, ("query",))
    # A mask can be attached to a tensor that is given only.
    return {
        name: "explicit" if how and name not in given else how for name, how in paddings.items()
    }


def resolved_axes(axes, rank):
    if axes is None:
        return tuple(range(1, rank - 1))
    return tuple(axis % rank for axis in axes)


def scores_form(rng, attended, rank=3):
    """How many axes stand before those of the queries, and which of these are 1."""
    most = (rank - 1 - attended) + 1
    leading = int(rng.integers(0, most + 1))
    return [chance(rng, 0.7) for _ in range(leading)]


def drawn_latent(rng):
    """Sizes of a latent attention. H counts no rotated features."""
    return {
        "H": pick(rng, 1, 2, 3, 5),
        "rank": pick(rng, 1, 2, 5, 8),
        "query_rank": pick(rng, None, 1, 3, 6),
        "rotary_dim": pick(rng, 2, 4, 8),
    }


def drawn_position(rng, own, rotated=None):
    """None or a dictionary with a kind, its options and, for rotary ones, the head's `size`.

    `rotated` is how many features a latent attention rotates, if it is one; `own` says that the
    layer attends to its queries.
    """
    if rotated is not None:
        made = drawn_rotary(rng, rotated, own)
        return made if made["size"] == rotated else None
    kind = pick(rng, None, None, None, "rotary", "rotary", "alibi", "relative", "keys", "grid")
    if kind is None or (kind == "grid" and not own):
        return None
    if kind == "rotary":
        return drawn_rotary(rng, pick(rng, 2, 4, 6, 8, 10), own)
    if kind == "relative":
        return {
            "kind": kind,
            "num_buckets": pick(rng, 4, 8, 32),
            "max_distance": pick(rng, 20, 37, 128),
        }
    if kind == "keys":
        return drawn_relative_keys(rng)
    if kind == "grid":
        return {"kind": kind, "max_distance": pick(rng, (1, 2), (4, 3), (2, 1, 2))}
    return {"kind": kind}


def drawn_relative_keys(rng):
    made = {
        "kind": "relative keys",
        "type": pick(rng, "shaw", "huang", "transformer_xl", "deberta"),
        "max_distance": pick(rng, 1, 4, 13, 60),
    }
    if made["type"] == "deberta" and chance(rng, 0.5):
        made |= {"max_distance": pick(rng, 13, 60), "num_buckets": pick(rng, 8, 16)}
    return made


def drawn_rotary(rng, size, own):
    """A rotary position of heads of `size` features, or of 8 where it needs them."""
    made = {
        "kind": "rotary",
        "fraction": pick(rng, 1.0, 1.0, 0.5),
        "layout": pick(rng, "half", "interleaved"),
        "theta": pick(rng, 10000.0, 500.0, 5e5),
        "sections": None,
        "size": size,
    }
    if made["fraction"] < 1:
        made["fraction"], made["size"] = (0.5, 8) if size != 4 else (0.5, 4)
    if own and size == 8 and made["fraction"] == 1 and chance(rng, 0.5):
        kind = pick(rng, "bands", "interleaved", "axial")
        sizes = pick(rng, [3, 1], [2, 2], [2, 1, 1])
        made["sections"] = {"type": kind, "sizes": sizes}
    axial = (made["sections"] or {}).get("type") == "axial"
    pairs = int(made["size"] * made["fraction"] / 2)
    made["scaling"] = None if axial else drawn_scaling(rng, pairs, made["fraction"])
    return made


def drawn_scaling(rng, pairs, fraction):
    kinds = ("linear", "ntk", "yarn", "llama3", "dynamic", "longrope", "proportional")
    kind = pick(rng, *[None] * 5, *kinds)
    if kind is None:
        return None
    if kind == "proportional":
        if fraction < 1:
            return None
        return {
            "type": kind,
            "factor": pick(rng, 1.0, 8.0),
            "partial_rotary_factor": pick(rng, 0.25, 0.5, 1.0),
        }
    scaling = {"type": kind, "factor": pick(rng, 1.0, 2.0, 8.0)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = pick(rng, 16, 64, 2048)
    if kind == "llama3":
        scaling["original_max_position_embeddings"] = pick(rng, 16, 64, 8192)
        scaling["low_freq_factor"], scaling["high_freq_factor"] = 1.0, 4.0
    if kind in ("dynamic", "longrope"):
        scaling["original_max_position_embeddings"] = pick(rng, 4, 16, 64)
        if chance(rng, 0.3):
            scaling["length"] = pick(rng, 7, 100)
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            scaling[name] = [round(float(x), 3) for x in rng.uniform(1.0, 4.0, pairs)]
    return scaling


def axes_of(position):
    """How many axes a position may have."""
    if position is None:
        return 1
    if position["kind"] == "grid":
        return len(position["max_distance"])
    sections = position.get("sections")
    return len(sections["sizes"]) if sections else 1


def drawn_coordinates(rng, position, own, attended):
    """How positions of several axes are given; "grid" where the layer takes the indices."""
    axes = axes_of(position)
    if axes == 1:
        return None
    if attended == axes and chance(rng, 0.5):
        return "grid"
    needed = position["kind"] == "grid" or position["sections"]["type"] == "axial"
    if needed or chance(rng, 0.7):
        return pick(rng, "rows", "one", "real")
    return "grid" if attended == axes else None


def drawn_places(rng, coordinates):
    """How positions of one axis are given."""
    return (
        maybe(rng, 0.3, lambda: pick(rng, "rows", "one", "far", "real"))
        if not coordinates
        else None
    )


# Inputs ---------------------------------------------------------------------------


def numbers(rng, shape, dtype):
    spread = pick(rng, 0.3, 1.0, 1.0, 3.0)
    return round_to(spread * rng.normal(size=shape), dtype)


def some(rng, shape, empty_rows=True):
    """Booleans, in some draws with whole rows False."""
    mask = rng.random(shape) < pick(rng, 0.3, 0.6, 0.9, 1.0)
    if empty_rows and len(shape) > 1 and mask.size and chance(rng, 0.3):
        mask[..., int(rng.integers(shape[-2])), :] = False
    return mask


def padding(rng, shape):
    """Booleans: a prefix, a suffix or anything, sometimes all or nothing."""
    how = pick(rng, "right", "left", "any", "all", "right", "left")
    counts = rng.integers(0, shape[-1] + 1, (*shape[:-1], 1))
    if how == "right":
        return np.arange(shape[-1]) < counts
    if how == "left":
        return np.arange(shape[-1]) >= counts
    return np.ones(shape, bool) if how == "all" else rng.random(shape) < 0.6


def with_infinities(rng, bias):
    hidden = rng.random(bias.shape) < 0.2
    if bias.ndim > 1 and bias.size and chance(rng, 0.4):
        hidden[..., int(rng.integers(bias.shape[-2])), :] = True
    return np.where(hidden, -np.inf, bias)


def form_shape(form, lead, tail):
    return tuple(size if full else 1 for full, size in zip(form, lead, strict=False)) + tuple(tail)


def bias_dtype(config):
    return compute_dtype(config["dtype"]) if config["bias_dtype"] == "compute" else "float32"


def function_data(rng, config):
    """Arrays by argument: the function's."""
    dtype = compute_dtype(config["dtype"])
    B, N, K, H, Hv, T, S = (config[name] for name in ("B", "N", "K", "H", "Hv", "T", "S"))
    data = {
        "query": numbers(rng, (B, T, N, H), dtype),
        "key": numbers(rng, (B, S, K, H), dtype),
        "value": numbers(rng, (B, S, K, Hv), dtype),
    }
    if config["mask"] is not None:
        data["attention_mask"] = some(rng, form_shape(config["mask"], (B, N), (T, S)))
    if config["bias"] is not None:
        bias = numbers(rng, form_shape(config["bias"], (B, N), (T, S)), bias_dtype(config))
        data["attention_bias"] = with_infinities(rng, bias) if config["bias_infinite"] else bias
    if config["sink"]:
        data["sink"] = numbers(rng, (N,), "float32")
    if config["segments"] == "two" or (config["segments"] and T != S):
        data["query_segments"] = rng.integers(0, 3, (B, T))
        data["key_segments"] = rng.integers(0, 3, (B, S))
    elif config["segments"]:
        data["segment_ids"] = np.sort(rng.integers(0, 4, (B, T)), axis=1)
    data["seed"] = int(rng.integers(0, 2**31 - 1))
    return data


def layer_data(rng, config):
    """Arrays by argument: a layer's; masks of padding under "query_mask" and "query attached"."""
    dtype = compute_dtype(config["dtype"])
    B, lengths, others = config["B"], config["lengths"], config["others"]
    data = {"query": numbers(rng, (B, *lengths, config["D"]), dtype)}
    own = config["form"] in ("query", "same", "same3")
    if not own:
        data["value"] = numbers(rng, (B, *others, config["Dv"]), dtype)
    if config["form"] == "key":
        data["key"] = numbers(rng, (B, *others, config["Dk"]), dtype)
    rank = 2 + len(lengths)
    axes = resolved_axes(config["axes"], rank)
    folded = [axis for axis in range(rank - 1) if axis not in axes]
    lead = [(B, *lengths)[axis] for axis in folded] + [config["N"]]
    tail = [lengths[axis - 1] for axis in axes] + [others[axis - 1] for axis in axes]
    if config["mask"] is not None:
        data["attention_mask"] = some(rng, form_shape(config["mask"], lead, tail))
    if config["bias"] is not None:
        bias = numbers(rng, form_shape(config["bias"], lead, tail), bias_dtype(config))
        data["attention_bias"] = with_infinities(rng, bias) if config["bias_infinite"] else bias
    T = math.prod(lengths[axis - 1] for axis in axes)
    if config["segments"]:
        rows = 1 if config["segments"] == "one" else B
        data["segment_ids"] = rng.integers(0, 4, (rows, T))
        if chance(rng, 0.5):
            data["segment_ids"].sort(axis=1)
    if config["spans"]:
        rows = 1 if config["spans"] == "one" else B
        data["bidirectional"] = rng.integers(-1, 4, (rows, T))
        if chance(rng, 0.7):
            data["bidirectional"].sort(axis=1)
    if config["positions"]:
        rows = 1 if config["positions"] == "one" else B
        far = 5000 if config["positions"] == "far" else 2 * T + 1
        data["positions"] = rng.integers(0, far, (rows, T))
        if config["positions"] == "real":  # of eighths, whose differences are exact in float32
            data["positions"] = (rng.integers(0, 16 * T + 8, (rows, T)) - 4 * T) / 8.0
        if chance(rng, 0.5):
            data["positions"].sort(axis=1)
    if config["coordinates"] in ("rows", "one", "real"):
        rows = 1 if config["coordinates"] == "one" else B
        axes = axes_of(config["position"])
        data["positions"] = rng.integers(0, 9, (rows, T, axes))
        if config["coordinates"] == "real":
            data["positions"] = rng.integers(-8, 80, (rows, T, axes)) / 8.0
    for name, how in config["paddings"].items():
        shape = (B, *(lengths if name == "query" else others))
        if how in ("explicit", "both"):
            data[f"{name}_mask"] = padding(rng, shape)
        if how in ("attached", "both"):
            data[f"{name} attached"] = padding(rng, shape)
    return data


def drawn_weight(rng, name, shape, dtype):
    """Far from where weights start: no bias, sink or scale is 0 or 1."""
    x = rng.normal(size=shape)
    if name.endswith("kernel"):
        fan_in = shape[0] if name != "attention_output/kernel" else shape[0] * shape[1]
        x = x / math.sqrt(fan_in)
    elif name.endswith("_table"):
        x = x / math.sqrt(shape[-1])
    elif name.endswith("/scale"):
        x = 1.0 + 0.3 * x
    elif name.endswith("bias"):
        x = 0.5 * x
    return round_to(x, dtype)
