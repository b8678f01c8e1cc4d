"""Against the machine's own limit: the rate of one large product, measured in the same run."""

from measure import interleaved, summary
from registry import BACKENDS, OURS, Case, Floor, Settings

SIZE, LENGTH = 2048, 4096
PRODUCT = f"one product of {SIZE} x {SIZE}"


def measure(settings: Settings) -> dict:
    from keras import ops

    from cases._layers import flops, inputs, pair
    from runners import compiled, forward, tensor

    _, layer = pair(LENGTH)
    a, b = tensor((SIZE, SIZE), 1), tensor((SIZE, SIZE), 2)
    runs = {
        PRODUCT: compiled(ops.matmul, a, b),
        OURS: forward(layer, inputs(LENGTH), use_causal_mask=True),
    }
    times = {k: summary(v) for k, v in interleaved(runs, settings.seconds, settings.rounds).items()}
    rate = 2 * SIZE**3 / times[PRODUCT]["median"] * 1e-6
    ours = flops(LENGTH) / times[OURS]["median"] * 1e-6
    return {
        "times": times,
        "share": ours / rate,
        "note": f"{ours:.0f} of {rate:.0f} GFLOP/s; {flops(LENGTH) / 1e9:.1f} GFLOP that "
        "causality leaves",
    }


CASES = [
    Case(
        "limit-4096",
        "causal forward, T = 4096: share of the machine's matrix product rate",
        "limit",
        measure,
        backends=BACKENDS,
        floors={"tensorflow": Floor("share", least=0.6)},
    )
]
