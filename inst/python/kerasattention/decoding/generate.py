"""`generate()`: continues token ids with a key/value cache."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor, numpy_of, tensor_of
from kerasattention.decoding.decoder import CHUNK, IncrementalDecoder, check_positive
from kerasattention.decoding.graph.run import as_logits
from kerasattention.decoding.pool import borrowed_decoder
from kerasattention.decoding.prompts import Prompts, as_numpy, as_stop
from kerasattention.decoding.sampling import Sampler, are_unusable, check_usable, choose_tokens

Tokens = Any
Callback = Callable[[np.ndarray], Any]


def generate(
    model: keras.Model,
    tokens: Tokens,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | Sequence[int] | None = None,
    seed: int | None = None,
    *,
    num_return_sequences: int = 1,
    inputs: Any = None,
    token_input: str | int | None = None,
    position_step: float | None = None,
    callback: Callback | None = None,
    progress: bool | Callable[[int, int], Any] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Continues prompts with the model's likeliest tokens, or with tokens drawn.

    Args:
        model: A Functional or Sequential model of causal attention whose other
            layers act per position: tokens (B, T) to logits (B, T, V). A last layer
            that ends in a softmax is understood. Layers and functions of your own are
            tried on random tokens, and the tokens of each call are compared with full
            passes of the model.
        tokens: Prompts: a vector, a matrix (B, T), or B sequences of different
            lengths, padded on the left and the padding masked.
        max_new_tokens: How many tokens to add at most.
        temperature: 0 takes the likeliest token; else the logits are divided by it
            and a token is drawn.
        top_k: None, or how many of the likeliest tokens to draw from.
        top_p: None, or the probability that the tokens drawn from have together
            (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
        stop_token: None, or the token (or tokens) after which a row ends. Rows that
            ended are filled up with the token that ended them.
        seed: Integer; the same seed gives the same tokens on every backend, as far
            as their logits agree.
        num_return_sequences: How many continuations of each prompt.
        inputs: Other inputs of the model (an encoder's), by name or in order. Those that are the
            `segment_ids`, `bidirectional` or `positions` of attention layers: see
            `IncrementalDecoder.prefill()`.
        token_input: Which input the tokens are; by default the last one, leaving out those that
            are only the segments or spans of attention layers.
        position_step: The distance from the position of a new token to the next, where an input
            of the model is the `positions` of its attention layers. The first is so far behind the
            largest position of its row, those of several axes on all axes. None: 1 for integers;
            for real numbers the distance must be given.
        callback: Called with the new tokens (B) each time one has come; the
            generation ends when it gives False.
        progress: Whether to show a progress bar, or a function called with the
            number of tokens done and in all. None shows one when the run is long.

    Returns:
        Prompts with their continuations as int32: a vector for a vector, a matrix
        for a matrix, a list of vectors for sequences of different lengths. With
        several sequences per prompt those of a prompt follow each other.

    Raises:
        ValueError: A model that cannot be decoded, with the layer's name and the
            reason; arguments that do not fit; logits that are NaN.
    """
    check_positive("max_new_tokens", max_new_tokens)
    check_positive("num_return_sequences", num_return_sequences)
    sampler = Sampler(temperature, top_k, top_p, seed)
    stop = as_stop(stop_token)
    prompts = Prompts.of(tokens, int(num_return_sequences))
    length = prompts.length + int(max_new_tokens)
    with borrowed_decoder(model, prompts.rows, length, token_input) as decoder:
        decoder.check_generates(position_step)
        reports = _Reports(callback, progress, max_new_tokens)
        try:
            made = continue_prompts(
                decoder,
                prompts.repeated,
                max_new_tokens,
                sampler,
                stop,
                _repeat(inputs, num_return_sequences),
                reports,
                position_step,
            )
        finally:
            reports.close()
    return prompts.joined(made, stop)


def continue_prompts(
    decoder: IncrementalDecoder,
    prompts: Tokens,
    max_new_tokens: int,
    sampler: Sampler,
    stop: np.ndarray,
    inputs: Any,
    reports: "_Reports",
    position_step: float | None = None,
) -> np.ndarray:
    """The new tokens (B, at most `max_new_tokens`)."""
    kind, numbers = sampler.kind, sampler.numbers()
    logits = as_logits(decoder.plan, decoder.prefill(prompts, inputs))
    check_usable(_any(are_unusable(logits)), 1)
    last = choose_tokens(logits, kind, numbers, decoder.length, decoder.padding)
    stop_tokens = tensor_of(stop, "int32")
    finished = ops.any(ops.equal(last[:, None], stop_tokens[None]), axis=1)
    parts = [numpy_of(last)[:, None]]
    done, more = 1, reports.tell(parts[0], 1)
    while more and done < max_new_tokens and not (stop.size and _all(finished)):
        steps = min(reports.stride, max_new_tokens - done)
        made, finished, count = decoder.decode_loop(
            kind, numbers, last, steps, finished, stop_tokens, position_step
        )
        part = numpy_of(made)[:, :count]
        parts.append(part)
        last = tensor_of(part[:, -1])
        done += count
        more = reports.tell(part, done)
    decoder.compare_rest()
    return np.concatenate(parts, axis=1)


class _Reports:
    """Calls a callback with each token, and reports the progress of a long run."""

    def __init__(self, callback: Callback | None, progress: Any, total: int) -> None:
        self.callback, self.total = callback, total
        self.progress = progress if callable(progress) else None
        self.bar = None
        if progress is True or (progress is None and total >= 512 and callback is None):
            self.bar = keras.utils.Progbar(total, unit_name="token")
        if callback is not None:
            self.stride = 1
        else:
            self.stride = CHUNK if self.bar is None and self.progress is None else 16

    def tell(self, new: np.ndarray, done: int) -> bool:
        """Whether to go on."""
        if self.bar is not None:
            self.bar.update(done, finalize=done == self.total)
        if self.progress is not None:
            self.progress(done, self.total)
        if self.callback is None:
            return True
        return all(self.callback(new[:, index]) is not False for index in range(new.shape[1]))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.update(self.bar._seen_so_far or 0, finalize=True)


def _repeat(inputs: Any, copies: int) -> Any:
    """The other inputs once for each continuation."""
    if inputs is None or copies == 1:
        return inputs
    if isinstance(inputs, dict):
        return {name: np.repeat(as_numpy(x), copies, axis=0) for name, x in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return [np.repeat(as_numpy(x), copies, axis=0) for x in inputs]
    return np.repeat(as_numpy(inputs), copies, axis=0)


def _all(finished: Tensor) -> bool:
    return bool(numpy_of(finished).all())


def _any(unusable: Tensor) -> bool:
    return bool(numpy_of(unusable).any())
