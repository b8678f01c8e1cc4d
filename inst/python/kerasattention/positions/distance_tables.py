"""What relative keys have for each distance: sinusoids, or a row of a table."""

import numpy as np


def sinusoids(farthest: int, width: int) -> np.ndarray:
    """(2 M + 1, width): sine and cosine in turn, of the positions M to -M, query less key."""
    positions = np.arange(farthest, -farthest - 1, -1, dtype=np.float64)[:, None]  # (2 M + 1, 1)
    frequencies = 1e4 ** (-np.arange(0, width, 2, dtype=np.float64) / width)  # (width / 2)
    angles = positions * frequencies  # (2 M + 1, width / 2)
    pairs = np.stack([np.sin(angles), np.cos(angles)], axis=-1)  # (2 M + 1, width / 2, 2)
    return pairs.reshape(len(positions), -1)[:, :width]  # (2 M + 1, width)


def deberta_entries(farthest: int, num_buckets: int | None) -> tuple[int, ...]:
    """The row of each distance, key less query, from -M to M.

    In float32 as in the published code, whose rounding decides the bucket of some distances.
    """
    distances = np.arange(farthest, -farthest - 1, -1)  # (2 M + 1), query less key
    span = farthest
    if num_buckets is not None:
        span, exact = num_buckets // 2, num_buckets // 4
        away = np.maximum(np.abs(distances), exact).astype("float32")  # (2 M + 1)
        growth = np.log(away / np.float32(exact))  # (2 M + 1)
        growth = growth / np.log(np.float32((farthest - 1) / exact))  # (2 M + 1)
        log = np.ceil(growth * np.float32(exact - 1)).astype("int64") + exact  # (2 M + 1)
        distances = np.where(np.abs(distances) <= exact, distances, log * np.sign(distances))
    return tuple(np.clip(distances + span, 0, 2 * span - 1).tolist())
