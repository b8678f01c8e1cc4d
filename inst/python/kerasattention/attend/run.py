"""Runs an attention call: selects a kernel for it, on one device or on each of several."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasattention.attend.bias import BlockBias, TensorBias, join_biases
from kerasattention.attend.dropout import draw_seed
from kerasattention.attend.finite import with_finite_inputs
from kerasattention.attend.inputs import AttentionInputs, tensors_under
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.prepare import make_inputs
from kerasattention.attend.registry import Kernel, select_kernel
from kerasattention.attend.sharing import OUTPUT, WEIGHTS, Ring, Share, check_ring
from kerasattention.attend.tensors import Span, Tensor, accumulator_of, join_query_heads
from kerasattention.attend.weights import attention_weights


@dataclasses.dataclass(frozen=True)
class Run:
    """Selects a kernel and runs it: output (B, T, N, Hv), and the weights if asked for."""

    return_scores: bool
    implementation: str | Kernel | None
    never_hold_scores: bool
    block_size: int | None
    ring: Ring | None = None

    def __call__(self, inputs: AttentionInputs) -> tuple[Tensor, ...]:
        output = self._output(inputs)  # (B, K, G, T, Hv)
        dtype, real = inputs.query.dtype, inputs.mask.query_mask
        output = join_query_heads(ops.cast(output, dtype))  # (B, T, N, Hv)
        if real is not None:
            output = ops.where(
                real[:, :, None, None], output, ops.zeros_like(output)
            )  # (B, T, N, Hv)
        if not self.return_scores:
            return (output,)
        return output, ops.cast(attention_weights(inputs), dtype)

    def _output(self, inputs: AttentionInputs) -> Tensor:
        """(B, K, G, T, Hv)."""
        if self.ring is not None:
            from kerasattention.attend.kernels.jax.ring import ring_attention

            return ring_attention(
                inputs, self.ring, self.implementation == "plain", self.block_size
            )
        kernel = select_kernel(inputs, self.implementation, self.never_hold_scores, self.block_size)
        return with_finite_inputs(inputs, lambda given: kernel.run(given, self.block_size))


@dataclasses.dataclass(frozen=True)
class _DeviceCall:
    """All of a call but its tensors, which it is called with: those of one device."""

    run: Run
    mask: AttentionMask
    bias: BlockBias | None
    options: tuple[tuple[str, Any], ...]

    def __call__(self, named: dict[str, Tensor]) -> tuple[Tensor, ...]:
        bias, mask = self.bias, self.mask.with_tensors(tensors_under("mask/", named))
        if bias is not None:
            bias = bias.with_tensors(tensors_under("bias/", named))
        inputs = make_inputs(
            named["query"],
            named["key"],
            named["value"],
            mask,
            biases=[] if bias is None else [bias],
            sink=named.get("sink"),
            seed=named.get("seed"),
            **dict(self.options),
        )
        offsets = {name: named.get(name, 0) for name in ("first_sample", "first_head")}
        return self.run(dataclasses.replace(inputs, **offsets))


def run_sharded(
    run: Run,
    share: Share,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    biases: list[BlockBias] | None = None,
    sink: Tensor | None = None,
    seed: Any = None,
    rate: float = 0.0,
    **options: Any,
) -> tuple[Tensor, ...]:
    """As `run` of the inputs, on the samples and heads of each device."""
    if share.ring is not None:
        _check_ring_options(run, mask, biases or [])
        check_ring(share.ring, query.shape[1], key.shape[1])
        run = dataclasses.replace(run, ring=share.ring)
        mask = _with_both_positions(mask, query.shape[1], key.shape[1])
    mask = mask.with_explicit_positions(Span(0, query.shape[1]))
    precision = accumulator_of(query.dtype)
    bias = join_biases(
        [
            bias.in_precision(precision).with_head_tensors()
            for bias in biases or []
            if bias is not None
        ]
    )
    named: dict[str, Tensor] = {"query": query, "key": key, "value": value}
    named |= {"sink": sink} if sink is not None else {}
    named |= {"seed": draw_seed(seed)} if rate > 0.0 else {}
    axes = {}
    for kind, owner in (("mask", mask), ("bias", bias)):
        for name, x in {} if owner is None else owner.tensors().items():
            named[f"{kind}/{name}"], axes[f"{kind}/{name}"] = x, owner.axes(name)
    frame = bias if bias is None else bias.with_tensors(dict.fromkeys(bias.tensors()))
    numbers = {"rate": rate} | options
    numbers = {name: None if x is None else float(x) for name, x in numbers.items()}
    call = _DeviceCall(run, mask.without_tensors(), frame, tuple(sorted(numbers.items())))
    outputs = (OUTPUT, WEIGHTS) if run.return_scores else (OUTPUT,)
    tensors: dict[str, Tensor] = {name: ops.convert_to_tensor(x) for name, x in named.items()}
    return _call_sharded()(call, tensors, axes, outputs, share)


def _call_sharded() -> Callable[..., tuple[Tensor, ...]]:
    if keras.backend.backend() == "torch":
        from kerasattention.attend.kernels.torch.sharded import call_sharded
    else:
        from kerasattention.attend.kernels.jax.sharded import call_sharded
    return call_sharded


def _check_ring_options(run: Run, mask: AttentionMask, biases: list[Any]) -> None:
    """Refuses what cannot be split into tokens of queries and of keys."""
    found = ["return_attention_scores"] if run.return_scores else []
    for name in mask.tensors():
        if not name.startswith(("query_", "key_")):
            found.append("attention_mask" if name == "mask" else name)
    for bias in biases:
        of_tokens = bias is not None and any("batch" in bias.axes(x) for x in bias.tensors())
        if of_tokens:
            found.append("attention_bias" if isinstance(bias, TensorBias) else "position")
    if found:
        raise ValueError(f"`{found[0]}` is not supported where sequences are split over devices.")


def _with_both_positions(mask: AttentionMask, length: int, keys: int) -> AttentionMask:
    """The same mask: positions are those of queries and of keys, or neither."""
    if not mask.has_explicit_positions:
        return mask
    return dataclasses.replace(
        mask,
        offset=0,
        query_positions=mask.positions_of_queries(Span(0, length)),  # (T) or (B, T)
        key_positions=mask.positions_of_keys(Span(0, keys)),  # (S) or (B, S)
    )
