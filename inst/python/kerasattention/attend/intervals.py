"""Sets of positions as sorted, disjoint intervals, for the rules of a mask.

Each interval is (start, stop), a pair of integers with `start` < `stop`.
"""

Interval = tuple[int, int]
Intervals = tuple[Interval, ...]

# Beyond every position.
FAR = 2**62
EVERYWHERE: Intervals = ((-FAR, FAR),)
NOWHERE: Intervals = ()


def interval(start: int, stop: int) -> Intervals:
    return ((start, stop),) if start < stop else NOWHERE


def union(first: Intervals, second: Intervals, gap: int = 0) -> Intervals:
    """The positions of either; intervals no more than `gap` apart become one."""
    joined: list[Interval] = []
    for start, stop in sorted(first + second):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)


def intersection(first: Intervals, second: Intervals) -> Intervals:
    found: list[Interval] = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, stop = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < stop:
            found.append((start, stop))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def complement(given: Intervals) -> Intervals:
    bounds = [-FAR, *(bound for pair in given for bound in pair), FAR]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return tuple((start, stop) for start, stop in pairs if start < stop)


def covers(given: Intervals, start: int, stop: int) -> bool:
    """Whether all positions from `start` to before `stop` are among the given ones."""
    return start >= stop or any(first <= start and stop <= last for first, last in given)
