"""Memory above the idle process, each figure from a fresh one."""

from registry import BACKENDS, KERAS, OURS, Case, Floor, Settings


def memory_case(length, gradient=False, training=True, **options):
    def measure(settings: Settings, part: str) -> dict:
        from cases._layers import inputs, pair
        from measure import MemoryAboveIdle, summary, timed
        from runners import forward, gradient_step, settle

        layer = pair(length, **options)[(KERAS, OURS).index(part)]
        settle()
        memory = MemoryAboveIdle()
        x = inputs(length)
        make = gradient_step if gradient else forward
        run = make(layer, x, use_causal_mask=True)
        times = timed(run, 1 if settings.quick or length > 8192 else 3)
        return {"memory": memory.peak(), "times": {part: summary(times)}}

    return measure


def at_most(figure):
    return {backend: Floor("memory", most=figure) for backend in BACKENDS}


FIGURES = [
    Case(
        "memory-forward-16384",
        "forward, T = 16384",
        "memory",
        memory_case(16384),
        floors=at_most(0.6),
        parts=(OURS,),
    ),
    Case(
        "memory-gradient-8192",
        "gradient step, T = 8192",
        "memory",
        memory_case(8192, gradient=True),
        floors=at_most(1.0),
        parts=(OURS,),
    ),
    Case(
        "memory-gradient-8192-dropout",
        "gradient step, T = 8192, dropout 0.1",
        "memory",
        memory_case(8192, gradient=True, dropout=0.1),
        parts=(OURS,),
    ),
    Case(
        "memory-window-32768",
        "forward, T = 32768, window 256",
        "memory",
        memory_case(32768, sliding_window=256),
        floors=at_most(0.5),
        parts=(OURS,),
    ),
]

# Beyond 8192 steps Keras's layer wants more memory than a laptop has.
CURVE = [
    Case(
        f"curve-{length}{suffix}",
        f"forward, T = {length}{name}",
        "curve",
        memory_case(length, **options),
        parts=(KERAS, OURS) if length <= 8192 else (OURS,),
    )
    for suffix, name, options, lengths in (
        ("", "", {}, (1024, 2048, 4096, 8192, 16384)),
        ("-window", ", window 256", {"sliding_window": 256}, (1024, 4096, 8192, 16384, 32768)),
    )
    for length in lengths
]

CASES = FIGURES + CURVE
