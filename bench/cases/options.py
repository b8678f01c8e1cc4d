"""What the layers' options cost: memory at a great length, and time of the forward pass."""

from measure import compare
from registry import BACKENDS, OURS, Case, Floor, Settings

LENGTH = 16384


def attend(length, options, call, gradient=False):
    """A function of an input that runs a layer of the report's sizes with these options."""
    import numpy as np
    from keras import ops

    import kerasattention as ka
    from cases._layers import D, H, K, N
    from runners import forward, gradient_step

    positions = {
        "rotary": ka.RotaryPosition,
        "alibi": ka.AlibiPosition,
        "relative": ka.RelativePosition,
        "relative, two axes": lambda: ka.RelativePosition(max_distance=127, axes=2),
        "sections": lambda: ka.RotaryPosition(sections=(H // 4, H // 8, H // 8)),
        "shaw": lambda: ka.RelativeKeysPosition(64, "shaw"),
        "transformer_xl": lambda: ka.RelativeKeysPosition(512, "transformer_xl"),
        "deberta": lambda: ka.RelativeKeysPosition(256, "deberta"),
        None: lambda: None,
    }
    masks = {
        "window": lambda: ka.WindowMask(256),
        "window or sinks": lambda: ka.WindowMask(256) | ka.PrefixMask(4),
        "chunks": lambda: ka.ChunkMask(1024),
        "dilated": lambda: ka.DilatedMask(4),
        "blocks": lambda: ka.BlockMask(np.tri(length // 512) % 3 > 0, 512),
        "function": lambda: ka.MaskFunction(lambda q, k: (q - k) % 64 < 48),
        None: lambda: None,
    }
    latent = options.get("kind") == "latent"
    equal = options.get("position") == "deberta" or "value_dim" in options
    options = {
        **options,
        "position": positions[options.get("position")](),
        "mask": masks[options.get("mask")](),
    }
    options.pop("kind", None)
    if latent:
        layer = ka.LatentAttention(N, H, 4 * H, rotary_dim=H // 2, **options)
    elif equal:  # as many key/value heads as query heads
        layer = ka.MultiHeadAttention(N, H, **options)
    else:
        layer = ka.GroupQueryAttention(H, N, K, **options)
    layer.build((1, length, D), (1, length, D))
    # Two segments; positions that begin anew in the second; a bias that keys alone decide.
    steps = np.arange(length, dtype="int32")[None]
    given = {
        "segment_ids": 1 + (steps >= length // 2),
        "positions": steps % (length // 2),
        "coordinates": np.stack([steps // 128, steps % 128], axis=-1),
        "three axes": np.stack([steps, steps // 128, steps % 128], axis=-1),
        "bidirectional": np.where(steps % 512 < 256, 1 + steps // 512, 0).astype("int32"),
        "attention_bias": np.sin(steps[:, None, None]).astype("float32"),
    }
    names = {"coordinates": "positions", "three axes": "positions"}
    call = {names.get(name, name): ops.convert_to_tensor(given[name]) for name in call}
    run = gradient_step if gradient else forward
    return lambda x: run(layer, x, use_causal_mask=True, **call)


def memory_case(options, call, gradient):
    def measure(settings: Settings, part: str) -> dict:
        import time

        from cases._layers import inputs
        from measure import MemoryAboveIdle, summary
        from runners import settle

        run_on = attend(LENGTH, options, call, gradient)
        settle()
        memory = MemoryAboveIdle()
        run = run_on(inputs(LENGTH))
        started = time.perf_counter()
        run()  # once: its time counts for little here
        times = [time.perf_counter() - started]
        return {"memory": memory.peak(), "times": {part: summary(times)}}

    return measure


def cost_case(length, without, options, gradient=False, call=()):
    """Times a layer beside one with other options, `without`: a label and these."""

    def measure(settings: Settings) -> dict:
        from cases._layers import inputs

        x = inputs(length)
        label, fewer = without
        runs = {
            label: attend(length, fewer, (), gradient)(x),
            OURS: attend(length, options, call, gradient)(x),
        }
        result = compare(runs, settings, 0.0)
        del result["difference"]
        return result

    return measure


OPTIONS = {
    "rotary": ({"position": "rotary"}, ()),
    "rotary, positions given": ({"position": "rotary"}, ("positions",)),
    "ALiBi": ({"position": "alibi"}, ()),
    "ALiBi, positions given": ({"position": "alibi"}, ("positions",)),
    "relative": ({"position": "relative"}, ()),
    "relative, positions given": ({"position": "relative"}, ("positions",)),
    "qk_norm": ({"qk_norm": True}, ()),
    "logit_soft_cap": ({"logit_soft_cap": 50.0}, ()),
    "attention_sink": ({"attention_sink": True}, ()),
    "use_gate": ({"use_gate": True}, ()),
    "value_dim": ({"value_dim": 48}, ()),
    "attention_bias": ({}, ("attention_bias",)),
    "segment_ids": ({}, ("segment_ids",)),
    "bidirectional": ({}, ("bidirectional",)),
    "sections, three axes": ({"position": "sections"}, ("three axes",)),
    "relative, two axes": ({"position": "relative, two axes"}, ("coordinates",)),
    "relative keys, shaw": ({"position": "shaw"}, ()),
    "relative keys, transformer_xl": ({"position": "transformer_xl"}, ()),
    "relative keys, deberta": ({"position": "deberta"}, ()),
    "mask, window or sinks": ({"mask": "window or sinks"}, ()),
    "mask, chunks": ({"mask": "chunks"}, ()),
    "mask, dilated": ({"mask": "dilated"}, ()),
    "mask, blocks": ({"mask": "blocks"}, ()),
    "mask, function": ({"mask": "function"}, ()),
    "latent attention": ({"kind": "latent"}, ()),
    "all, window 256": (
        {
            "position": "rotary",
            "sliding_window": 256,
            "qk_norm": True,
            "logit_soft_cap": 50.0,
            "attention_sink": True,
            "use_gate": True,
        },
        ("attention_bias", "segment_ids", "positions"),
    ),
}

CASES = [
    Case(
        prefix + name.lower().replace(",", "").replace(" ", "-"),
        f"{title}, T = {LENGTH}, {name}",
        "memory",
        memory_case(options, call, gradient),
        floors={backend: Floor("memory", most=0.8) for backend in BACKENDS},
        parts=(OURS,),
    )
    for prefix, title, gradient in (
        ("memory-option-", "forward", False),
        ("memory-gradient-option-", "gradient", True),
    )
    for name, (options, call) in OPTIONS.items()
]
CASES += [
    Case(
        "rotary-4096",
        "forward, T = 4096, rotary positions against none",
        "options",
        cost_case(4096, ("no position", {}), {"position": "rotary"}),
        # At most 10% more.
        floors={backend: Floor("ratio", least=1 / 1.1) for backend in BACKENDS},
    )
]
CASES += [
    Case(
        f"{name}-32768-sinks",
        f"{title}, T = 32768, window 256 or sinks 4 against the window",
        "options",
        cost_case(32768, ("window", {"mask": "window"}), {"mask": "window or sinks"}, gradient),
        # At most 30% more.
        floors={backend: Floor("ratio", least=1 / 1.3) for backend in BACKENDS},
    )
    for name, title, gradient in (
        ("forward", "forward", False),
        ("gradient", "gradient step", True),
    )
]
CASES += [
    Case(
        f"{name}-4096-bidirectional",
        f"{title}, T = 4096, causal with spans of 256 that see each other, against causal",
        "options",
        cost_case(4096, ("causal", {}), {}, gradient, call=("bidirectional",)),
        # At most 50% more.
        floors={backend: Floor("ratio", least=1 / 1.5) for backend in BACKENDS},
    )
    for name, title, gradient in (
        ("forward", "forward", False),
        ("gradient", "gradient step", True),
    )
]
