"""Attention problems to test with: one table of everything that can be asked for, by name.

Every axis has a prime of its own, so that a swapped one cannot pass: B 2, K 3, G 5,
H 7, Hv 11, T 13, S 17 (so N 15).
"""

import contextlib
import dataclasses
import functools
from typing import Any

import numpy as np

import reference
from backends import tensor
from kerasattention.attend import api, registry
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.layers import attending

B, K, G, H, HV, T, S = 2, 3, 5, 7, 11, 13, 17
N = K * G
# Several blocks of queries, the last one smaller.
SMALL_BLOCK = 7
SEED = (123456789, 987654321)

# What AttentionMask knows of tensors, and the axes of each.
PER_SAMPLE = {
    "query_positions",
    "key_positions",
    "query_mask",
    "key_mask",
    "query_segments",
    "key_segments",
    "query_bidirectional",
    "key_bidirectional",
}


@dataclasses.dataclass
class AttentionProblem:
    """NumPy inputs and options of one problem; `mask_fields` holds the fields of its mask."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    mask_fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    bias: np.ndarray | None = None
    scale: float | None = None
    cap: float | None = None
    sink: np.ndarray | None = None
    rate: float = 0.0

    @property
    def shape(self):
        """(B, N, T, S)."""
        return (*self.query.shape[::2], self.query.shape[1], self.key.shape[1])

    def trainable(self):
        """The arrays with a gradient, by the names that `attend` below takes."""
        named = {"query": self.query, "key": self.key, "value": self.value}
        named |= {"bias": self.bias} if self.bias is not None else {}
        named |= {"sink": self.sink} if self.sink is not None else {}
        return named

    @functools.cached_property
    def seen(self):
        """Booleans (B, N, T, S)."""
        options = dict(self.mask_fields)
        sizes = dict(zip("BNTS", self.shape, strict=True))
        offset = options.pop("offset", 0)
        if offset:
            options["query_positions"] = np.arange(sizes["T"]) + offset
            options["key_positions"] = np.arange(sizes["S"])
        for name in PER_SAMPLE & options.keys():
            if options[name].ndim == 1:
                options[name] = np.broadcast_to(options[name], (sizes["B"], len(options[name])))
        return reference.visible(**sizes, **options)

    @functools.cached_property
    def expected(self):
        """Output and weights, from the reference."""
        return reference.attention(**self._for_reference(), **self._dropped())

    @functools.cached_property
    def upstream(self):
        """A gradient of the output, (B, T, N, Hv)."""
        b, n, t, _ = self.shape
        return np.random.default_rng(6).normal(size=(b, t, n, self.value.shape[3]))

    @functools.cached_property
    def expected_gradients(self):
        found = reference.attention_gradients(
            **self._for_reference(), **self._dropped(), upstream=self.upstream
        )
        if self.bias is not None:
            found["bias"] = sum_to(found["bias"], self.bias.shape)
        return {name: found[name] for name in self.trainable()}

    def _for_reference(self):
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "seen": self.seen,
            "bias": self.bias,
            "scale": self.scale,
            "cap": self.cap,
            "sink": self.sink,
        }

    def _dropped(self):
        if self.rate == 0.0:
            return {}
        return {"keep": reference.kept_weights(SEED, self.shape, self.rate), "rate": self.rate}

    def attend(self, query, key, value, bias=None, sink=None, **options):
        """Ours, of tensors that take the place of the arrays."""
        described = {
            name: tensor(x) if isinstance(x, np.ndarray) else x
            for name, x in self.mask_fields.items()
        }
        if "mask" in described:
            described["mask"] = api.expand_mask(described["mask"], "mask")
        return api.attend(
            query,
            key,
            value,
            AttentionMask(**described),
            biases=[] if bias is None else [TensorBias(api.expand_mask(bias, "bias"))],
            scale=self.scale,
            soft_cap=self.cap,
            sink=sink,
            rate=self.rate,
            seed=tensor(np.array(SEED), "int32") if self.rate else None,
            **options,
        )


def sum_to(x, shape):
    """Sums (B, N, T, S) over the axes that `shape` broadcasts."""
    full = (shape[0], 1, *shape[1:]) if len(shape) == 3 else (1,) * (4 - len(shape)) + shape
    axes = tuple(axis for axis in range(4) if full[axis] == 1)
    return x.sum(axis=axes, keepdims=True).reshape(shape)


def problem(seed=0, **options):
    """Random inputs of the sizes above."""
    rng = np.random.default_rng(seed)
    sizes = {"B": B, "K": K, "G": G, "H": H, "Hv": HV, "T": T, "S": S}
    sizes |= {name: options.pop(name) for name in sizes if name in options}
    b, k, t, s = (sizes[name] for name in "BKTS")
    return AttentionProblem(
        query=rng.normal(size=(b, t, k * sizes["G"], sizes["H"])),
        key=rng.normal(size=(b, s, k, sizes["H"])),
        value=rng.normal(size=(b, s, k, sizes["Hv"])),
        **options,
    )


def _random(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def _some(*shape, share=0.6, seed=2):
    return np.random.default_rng(seed).random(shape) < share


def _without_rows(mask, *rows):
    """The mask with some queries' rows all False."""
    mask = mask.copy()
    mask[..., list(rows), :] = False
    return mask


def _masked_rows():
    bias = np.random.default_rng(3).normal(size=(B, 1, T, S))
    bias[0, :, 2] = -np.inf
    bias[:, :, :, 5] = -np.inf
    return bias


QUERY_SEGMENTS = np.array([[1] * 4 + [2] * 6 + [0] * 3, [3] * 1 + [1] * 12])
KEY_SEGMENTS = np.array([[1] * 7 + [2] * 5 + [0] * 5, [0] * 4 + [1] * 13])
QUERY_POSITIONS = np.random.default_rng(4).integers(0, 19, (B, T))
KEY_POSITIONS = np.random.default_rng(5).integers(0, 19, (B, S))
PADDING = np.arange(S) < np.array([[S], [6]])
LEFT_PADDING = np.arange(S) >= np.array([[0], [9]])
QUERY_PADDING = np.arange(T) < np.array([[7], [T]])

PROBLEMS = {
    "nothing hidden": problem(),
    "one key/value head": problem(K=1),
    "a key/value head for each query head": problem(G=1),
    "causal": problem(mask_fields={"causal": True}),
    "causal, more queries than keys": problem(T=S, S=T, mask_fields={"causal": True}),
    "causal from an offset": problem(mask_fields={"causal": True, "offset": 3}),
    "window": problem(mask_fields={"window": 4}),
    "window of one": problem(mask_fields={"window": 1}),
    "window, more queries than keys": problem(T=23, S=7, mask_fields={"window": 3}),
    "window, causal": problem(mask_fields={"window": 4, "causal": True}),
    "window, causal, offset": problem(mask_fields={"window": 4, "causal": True, "offset": 4}),
    "positions of each sample": problem(
        mask_fields={
            "window": 7,
            "causal": True,
            "query_positions": QUERY_POSITIONS,
            "key_positions": KEY_POSITIONS,
        }
    ),
    "positions of all": problem(
        mask_fields={
            "causal": True,
            "query_positions": QUERY_POSITIONS[0],
            "key_positions": KEY_POSITIONS[1],
        }
    ),
    "padded keys": problem(mask_fields={"key_mask": PADDING}),
    "padded keys, causal": problem(mask_fields={"key_mask": LEFT_PADDING, "causal": True}),
    "padded queries and keys, causal": problem(
        mask_fields={"query_mask": QUERY_PADDING, "key_mask": PADDING, "causal": True}
    ),
    "a sample of padding": problem(mask_fields={"key_mask": PADDING & [[True], [False]]}),
    "segments": problem(
        mask_fields={"query_segments": QUERY_SEGMENTS, "key_segments": KEY_SEGMENTS}
    ),
    "segments, causal": problem(
        mask_fields={
            "query_segments": QUERY_SEGMENTS,
            "key_segments": KEY_SEGMENTS,
            "causal": True,
        }
    ),
    "mask (T, S)": problem(mask_fields={"mask": _some(T, S)}),
    "mask (B, T, S)": problem(mask_fields={"mask": _some(B, T, S)}),
    "mask (B, N, T, S)": problem(mask_fields={"mask": _some(B, N, T, S)}),
    "mask of one for all": problem(mask_fields={"mask": _some(1, N, 1, S)}),
    "mask with empty rows": problem(
        mask_fields={"mask": _without_rows(_some(B, 1, T, S), 0, 7, T - 1)}
    ),
    "mask (B, N, T, S), padding, causal": problem(
        mask_fields={"mask": _some(B, N, T, S), "key_mask": LEFT_PADDING, "causal": True}
    ),
    "bias (T, S)": problem(bias=_random(T, S)),
    "bias (B, N, T, S), causal": problem(bias=_random(B, N, T, S), mask_fields={"causal": True}),
    "bias of heads, window": problem(bias=_random(1, N, 1, S), mask_fields={"window": 5}),
    "bias of minus infinity": problem(bias=_masked_rows()),
    "scale": problem(scale=0.7),
    "cap": problem(cap=1.3, scale=1.0),
    "cap, bias, causal": problem(
        cap=1.3, scale=1.0, bias=_random(1, N, T, S), mask_fields={"causal": True}
    ),
    "sink": problem(sink=_random(N)),
    "sink, empty rows": problem(
        sink=_random(N), mask_fields={"mask": _without_rows(_some(B, 1, T, S), 3)}
    ),
    "dropout": problem(rate=0.3),
    "dropout, window, causal": problem(rate=0.3, mask_fields={"window": 6, "causal": True}),
    "all at once": problem(
        rate=0.2,
        cap=2.1,
        scale=0.9,
        sink=_random(N),
        bias=_random(B, N, T, S),
        mask_fields={
            "causal": True,
            "window": 9,
            "offset": 2,
            "query_mask": QUERY_PADDING,
            "key_mask": PADDING,
            "query_segments": QUERY_SEGMENTS,
            "key_segments": KEY_SEGMENTS,
            "mask": _some(B, N, T, S, share=0.8),
        },
    ),
}

# Every kind of mask, bias and option, for kernels that take seconds to compile or to trace each.
# `make fuzz` draws their products.
OF_EACH_KIND = [
    *("nothing hidden", "one key/value head", "causal, more queries than keys"),
    *("window, more queries than keys", "window, causal, offset", "positions of each sample"),
    *("positions of all", "padded queries and keys, causal", "segments, causal"),
    *("mask (T, S)", "mask (B, N, T, S), padding, causal", "mask of one for all"),
    *("mask with empty rows", "bias of heads, window", "bias of minus infinity"),
    *("cap, bias, causal", "sink, empty rows", "dropout, window, causal", "all at once"),
]


@contextlib.contextmanager
def engine_options(**options):
    """Adds options to every call of the engine, the layers' calls too."""

    def with_options(*args, **given):
        return attend(*args, **(given | options))

    attend = api.attend
    places = (api, attending)
    for place in places:
        place.attend = with_options
    try:
        yield
    finally:
        for place in places:
            place.attend = attend


def block_size(size):
    """Makes kernels compute blocks of this many queries."""
    return engine_options(block_size=size)


def kernel(run):
    """A row for the registry that a call can be given as its `implementation`."""
    return registry.Kernel("of a test", "blocked", run, "a test")


# Lengths of several tiles, for kernels that have tiles of keys too.


def visible(**options):
    return problem(T=61, S=61, mask_fields=options)


_LONGER = {
    "causal": visible(causal=True),
    "causal, from an offset": problem(T=37, S=61, mask_fields={"causal": True, "offset": 23}),
    "window wider than a tile": visible(causal=True, window=23),
    "two-sided window wider than a tile": visible(window=23),
    "narrow window": visible(causal=True, window=3),
    "whole tiles": problem(T=30, S=35),
    "more queries than keys, window": problem(T=61, S=17, mask_fields={"window": 4}),
    "padding, window": visible(
        causal=True, window=23, key_mask=np.arange(61) < np.array([[61], [7]])
    ),
}
TILED = PROBLEMS | {f"long, {name}": given for name, given in _LONGER.items()}
