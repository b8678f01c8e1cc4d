"""The layer against Keras's: forward passes and gradient steps."""

from measure import compare
from registry import KERAS, OURS, Case, Settings, ratios


def forward_case(length, padded=False, **options):
    def measure(settings: Settings) -> dict:
        import numpy as np
        from keras import ops

        from cases._layers import inputs, pair
        from runners import difference, forward

        layers = pair(length, **options)
        x = inputs(length)
        call = {"use_causal_mask": True}
        valid = slice(None)
        if padded:
            # The last quarter is padding; only there may the layers differ.
            valid = slice(0, 3 * length // 4)
            mask = ops.convert_to_tensor(np.arange(length)[np.newaxis] < valid.stop)
            call |= {"query_mask": mask, "value_mask": mask, "key_mask": mask}
        runs = {
            label: forward(layer, x, **call)
            for label, layer in zip((KERAS, OURS), layers, strict=True)
        }
        return compare(runs, settings, difference(runs[KERAS](), runs[OURS](), valid))

    return measure


def gradient_case(length, jit_compile=False, **options):
    def measure(settings: Settings) -> dict:
        from cases._layers import inputs, pair
        from runners import difference, gradient_step

        x = inputs(length)
        runs = {
            label: gradient_step(layer, x, jit_compile=jit_compile, use_causal_mask=True)
            for label, layer in zip((KERAS, OURS), pair(length, **options), strict=True)
        }
        return compare(runs, settings, difference(runs[KERAS](), runs[OURS]()))

    return measure


CASES = [
    Case(
        "forward-1024", "forward, T = 1024", "time", forward_case(1024), floors=ratios(1.5, 2.5, 1)
    ),
    Case("forward-4096", "forward, T = 4096", "time", forward_case(4096), floors=ratios(2.2, 3, 1)),
    Case(
        "forward-4096-window",
        "forward, T = 4096, window 256",
        "time",
        forward_case(4096, sliding_window=256),
        floors=ratios(6, 10, 8),
    ),
    Case(
        "gradient-4096",
        "gradient step, T = 4096",
        "time",
        gradient_case(4096),
        floors=ratios(1.5, 3.5, 1),
    ),
    Case(
        "gradient-4096-window",
        "gradient step, T = 4096, window 256",
        "time",
        gradient_case(4096, sliding_window=256),
        floors=ratios(5, 15, 6),
    ),
    Case(
        "gradient-4096-xla",
        "gradient step, T = 4096, jit_compile=True",
        "time",
        gradient_case(4096, jit_compile=True),
        backends=("tensorflow",),
    ),
    Case(
        "padding-4096",
        "forward, T = 4096, padding mask and causal",
        "time",
        forward_case(4096, padded=True),
        floors=ratios(2, 3, 3),
    ),
    Case(
        "dropout-4096",
        "forward, T = 4096, dropout 0.1 at inference",
        "time",
        forward_case(4096, dropout=0.1),
        floors=ratios(2, 3, 10),
    ),
]
