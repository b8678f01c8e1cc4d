"""Other libraries' attention, where they are installed: the kernels alone, and whole layers."""

import importlib.util

from measure import compare
from registry import OURS, Case, Settings

LENGTH = 4096


def kernel(window=None):
    """Query, key and value given: N = 8 query heads over K = 2."""

    def measure(settings: Settings) -> dict:
        from cases._layers import H, K, N
        from kerasattention import scaled_dot_product_attention
        from runners import BACKEND, compiled, difference, tensor

        heads = [tensor((1, LENGTH, n, H), seed) for seed, n in enumerate((N, K, K))]
        runs = {
            OURS: compiled(
                lambda q, k, v: scaled_dot_product_attention(
                    q, k, v, causal=True, sliding_window=window
                ),
                *heads,
            )
        }
        if BACKEND == "torch":
            runs["torch scaled_dot_product_attention"] = compiled(torch_kernel(window), *heads)
        if BACKEND == "jax":
            runs["jax.nn.dot_product_attention"] = compiled(jax_kernel(window), *heads)
        results = [run() for run in runs.values()]
        return compare(runs, settings, difference(*results))

    return measure


def torch_kernel(window):
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    mask = None
    if window is not None:
        ones = torch.ones((LENGTH, LENGTH), dtype=torch.bool)
        mask = ones.tril() & ones.triu(1 - window)

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        output = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return output.transpose(1, 2)

    return attend


def jax_kernel(window):
    import jax

    def attend(q, k, v):
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=local)

    return attend


def layers(settings: Settings) -> dict:
    """Multi-head attention (K = N) with the same weights, projections included."""
    import kerasattention
    from cases._layers import D, H, N, inputs
    from runners import BACKEND, difference, forward

    ours = kerasattention.MultiHeadAttention(N, H)
    x = inputs(LENGTH)
    ours.build(x.shape, x.shape)
    peers = {}
    if BACKEND == "torch":
        peers["torch.nn.MultiheadAttention"] = torch_layer(ours, x, D, N)
    if BACKEND == "jax" and importlib.util.find_spec("flax") is not None:
        peers["flax nnx.MultiHeadAttention"] = flax_layer(ours, x, D, N)
    if not peers:
        return {"note": "no peer is installed: `make setup-peers`"}
    runs = {OURS: forward(ours, x, use_causal_mask=True), **peers}
    results = [run() for run in runs.values()]
    return compare(runs, settings, difference(*results))


def torch_layer(ours, x, D, N):
    import torch

    layer = torch.nn.MultiheadAttention(D, N, batch_first=True).eval()
    kernels = [torch.as_tensor(w) for w in ours.get_weights()]  # (D, N, H), (N, H) ... (N, H, D)
    query, query_bias, key, key_bias, value, value_bias, output, output_bias = kernels
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.cat([w.reshape(D, -1).T for w in (query, key, value)]))
        layer.in_proj_bias.copy_(
            torch.cat([b.flatten() for b in (query_bias, key_bias, value_bias)])
        )
        layer.out_proj.weight.copy_(output.reshape(-1, D).T)
        layer.out_proj.bias.copy_(output_bias)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def run():
        with torch.no_grad():
            return layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]

    return run


def flax_layer(ours, x, D, N):
    import jax
    from flax import nnx

    layer = nnx.MultiHeadAttention(N, D, decode=False, rngs=nnx.Rngs(0))
    names = ("query", "key", "value", "out")
    weights = iter(ours.get_weights())
    for name in names:
        dense = getattr(layer, name)
        dense.kernel.value = jax.numpy.asarray(next(weights))
        dense.bias.value = jax.numpy.asarray(next(weights))
    mask = nnx.make_causal_mask(x[..., 0])
    graph, state = nnx.split(layer)
    call = jax.jit(lambda state, x: nnx.merge(graph, state)(x, mask=mask))
    return lambda: jax.block_until_ready(call(state, x))


CASES = [
    Case(
        "peers-kernel-4096",
        "causal attention alone, T = 4096, N = 8, K = 2",
        "peers",
        kernel(),
        backends=("jax", "torch"),
    ),
    Case(
        "peers-kernel-4096-window",
        "the same, window 256",
        "peers",
        kernel(256),
        backends=("jax", "torch"),
    ),
    Case(
        "peers-layer-4096",
        "multi-head layer, causal forward, T = 4096, N = K = 8",
        "peers",
        layers,
        backends=("jax", "torch"),
    ),
]
