"""Peak memory of each kernel that never holds the scores: a T + b, measured at three lengths.

    python tests/fuzz/memory.py --backend torch

Each length runs in a fresh process: forward and backward of one causal call. From one length to
the next memory may grow by as much as the length does; (T, S) scores would make it grow by twice
that. Ends with status 1 if a kernel's does.
"""

import os
import subprocess
import sys

import session  # sets the backend and the paths; before Keras is imported

if __name__ == "__main__":
    ARGUMENTS = session.arguments(__doc__)

# Long enough for the part that grows to stand out of that which does not.
LENGTHS = (2048, 4096, 8192)
KERNELS = {
    "torch": ("blocked", "fused"),
    "tensorflow": ("blocked",),
    "jax": ("blocked",),
}
# The second step is twice as long as the first: a line makes it 2, scores make it 4.
MOST_GROWTH = 2.6
# Below this much, in megabytes, what the allocator rounds up to decides.
NOISE = 8.0


def measured(kernel, length):
    """Megabytes above what the process held when it had made its inputs."""
    import numpy as np

    import kerasattention as ka
    from backends import tensor, value_and_gradients

    rng = np.random.default_rng(0)
    sizes = {"query": (1, length, 4, 16), "key": (1, length, 2, 16), "value": (1, length, 2, 16)}

    def attend(query, key, value):
        return ka.scaled_dot_product_attention(
            query, key, value, causal=True, implementation=kernel
        )

    def run(length):
        inputs = {
            name: tensor(rng.normal(size=(b, length, heads, size)))
            for name, (b, _, heads, size) in sizes.items()
        }
        upstream = tensor(np.ones((1, length, 4, 16)))
        value_and_gradients(lambda **x: (attend(**x),), inputs, upstream)

    run(256)  # code is loaded and thread pools are made
    reset_peak()
    before = status("VmRSS")
    run(length)
    return (status("VmHWM") - before) / 1024


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def status(name):
    """Kilobytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def in_fresh_process(kernel, length):
    environment = os.environ | {"KERNEL": kernel, "LENGTH": str(length)}
    command = [sys.executable, __file__, "--backend", ARGUMENTS.backend]
    found = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return float(found.stdout.split()[-1])


def main():
    if "KERNEL" in os.environ:
        print(measured(os.environ["KERNEL"], int(os.environ["LENGTH"])))
        return 0
    failed = False
    for kernel in KERNELS[ARGUMENTS.backend]:
        sizes = [in_fresh_process(kernel, length) for length in LENGTHS]
        first, second = sizes[1] - sizes[0], sizes[2] - sizes[1]
        wrong = second > MOST_GROWTH * max(first, NOISE)
        failed |= wrong
        text = ", ".join(f"{size:.1f} MB at {T}" for T, size in zip(LENGTHS, sizes, strict=True))
        grows = "GROWS FASTER THAN T" if wrong else "grows with T"
        print(f"memory on {ARGUMENTS.backend}, {kernel}: {text}: {grows}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
