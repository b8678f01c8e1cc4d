"""Traced steps on torch with fewer operations: which ones may go, and which may not."""

import numpy as np
import pytest

from backends import BACKEND

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="steps are traced on torch")
if BACKEND == "torch":
    import torch


def traced(step, *inputs):
    from kerasattention.decoding.backends.trace_torch import trace

    with torch.inference_mode():
        module = trace(step, *inputs)

    def run(*inputs):
        with torch.inference_mode():
            return module(*inputs)

    run.graph = module.graph
    return run


def count(made, name):
    return sum(str(x.target) == f"aten.{name}" for x in made.graph.nodes)


def numbers(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype="float32"))


def test_what_is_computed_twice_is_computed_once():
    def step(x):
        tables = [torch.cos(x * torch.tensor([1.0, 2.0, 3.0])) for _ in range(3)]
        return tables[0] + tables[1] * tables[2]

    x = numbers(5, 3)
    made = traced(step, x)
    assert count(made, "cos.default") == 1
    other = numbers(5, 3, seed=2)
    torch.testing.assert_close(made(other), step(other))


def test_numbers_that_differ_are_not_the_same():
    def step(x):
        return (
            torch.cos(x * torch.tensor([1.0, 2.0])) + torch.cos(x * torch.tensor([1.0, 3.0]))
        ) * (torch.pow(x, 2) - torch.pow(x, 3))

    x = numbers(5, 2)
    made = traced(step, x)
    assert count(made, "cos.default") == 2
    torch.testing.assert_close(made(x), step(x))


def test_what_is_read_before_and_after_a_write_stays_two():
    cache = torch.zeros(4, 3)

    def step(x):
        before = torch.exp(cache).sum()
        cache[1:2] = x
        return torch.stack([before, torch.exp(cache).sum()])

    made = traced(step, numbers(1, 3))
    for seed in (2, 3):
        x, start = numbers(1, 3, seed=seed), torch.exp(cache).sum().item()
        before, after = made(x).tolist()
        expected = torch.exp(cache).sum().item()
        assert before == pytest.approx(start)
        assert after == pytest.approx(expected)
        assert before != after


def test_what_a_result_is_put_into_is_written_to():
    room = torch.zeros(3)
    same = room[:]

    def step(x):
        before = torch.exp(same)
        torch.mul(x, 2.0, out=room)
        return before - torch.exp(same)

    x = numbers(3)
    made = traced(step, x)
    room.zero_()
    torch.testing.assert_close(made(x), 1.0 - torch.exp(2 * x))


def test_two_buffers_that_are_filled_later_stay_two():
    def step(x):
        first, second = torch.zeros(3), torch.zeros(3)
        first += x
        second += 2 * x
        return torch.cat([first, second])

    x = numbers(3)
    made = traced(step, x)
    for _ in range(2):  # nor are they kept from one step to the next
        torch.testing.assert_close(made(x), torch.cat([x, 2 * x]))


def test_a_literal_that_is_written_to_is_made_anew():
    def step(x):
        total = torch.tensor([1.0, 2.0, 3.0])
        total += x
        return total

    x = numbers(3)
    made = traced(step, x)
    for _ in range(2):
        torch.testing.assert_close(made(x), x + torch.tensor([1.0, 2.0, 3.0]))
