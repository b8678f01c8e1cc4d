"""Recorded steps on torch with fewer operations: which ones may go, and which may not."""

import numpy as np
import pytest

from backends import BACKEND

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="steps are recorded on torch")
if BACKEND == "torch":
    import torch


def recorded(step, *inputs):
    from kerasattention.decoding.backends.trace_torch import record

    with torch.inference_mode():
        recording = record(step, *inputs)

    def run(*inputs):
        with torch.inference_mode():
            return recording(*inputs)

    run.graph = recording._module.graph
    return run


def count(recording, name):
    return sum(str(x.target) == f"aten.{name}" for x in recording.graph.nodes)


def numbers(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype="float32"))


def test_what_is_computed_twice_is_computed_once():
    def step(x):
        tables = [torch.cos(x * torch.tensor([1.0, 2.0, 3.0])) for _ in range(3)]
        return tables[0] + tables[1] * tables[2]

    x = numbers(5, 3)
    made = recorded(step, x)
    assert count(made, "cos.default") == 1
    other = numbers(5, 3, seed=2)
    torch.testing.assert_close(made(other), step(other))


def test_numbers_that_differ_are_not_the_same():
    def step(x):
        return (
            torch.cos(x * torch.tensor([1.0, 2.0])) + torch.cos(x * torch.tensor([1.0, 3.0]))
        ) * (torch.pow(x, 2) - torch.pow(x, 3))

    x = numbers(5, 2)
    made = recorded(step, x)
    assert count(made, "cos.default") == 2
    torch.testing.assert_close(made(x), step(x))


def test_what_is_read_before_and_after_a_write_stays_two():
    cache = torch.zeros(4, 3)

    def step(x):
        before = torch.exp(cache).sum()
        cache[1:2] = x
        return torch.stack([before, torch.exp(cache).sum()])

    made = recorded(step, numbers(1, 3))
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
    made = recorded(step, x)
    room.zero_()
    torch.testing.assert_close(made(x), 1.0 - torch.exp(2 * x))


def test_two_buffers_that_are_filled_later_stay_two():
    def step(x):
        first, second = torch.zeros(3), torch.zeros(3)
        first += x
        second += 2 * x
        return torch.cat([first, second])

    x = numbers(3)
    made = recorded(step, x)
    for _ in range(2):  # nor are they kept from one step to the next
        torch.testing.assert_close(made(x), torch.cat([x, 2 * x]))


def test_a_literal_that_is_written_to_is_made_anew():
    def step(x):
        total = torch.tensor([1.0, 2.0, 3.0])
        total += x
        return total

    x = numbers(3)
    made = recorded(step, x)
    for _ in range(2):
        torch.testing.assert_close(made(x), x + torch.tensor([1.0, 2.0, 3.0]))


LAYOUTS = {
    "rows": lambda w: w,
    "columns": lambda w: w.t().contiguous().t(),
    "strided": lambda w: torch.cat([w, w], 1)[:, : w.shape[1]],
}


@pytest.mark.parametrize("rows", [1, 3, 16, 17])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batched", [False, True])
def test_products_of_few_rows_are_taken_in_columns(rows, layout, batched, monkeypatch):
    from kerasattention.decoding.backends import columns_torch

    monkeypatch.setattr(columns_torch, "LEAST_NUMBERS", 24 * 256)
    weight = LAYOUTS[layout](numbers(24, 256))
    x = numbers(rows, 24, seed=2)
    # Two threads, so that there is something to divide by on any machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if batched:
            made = recorded(lambda x: torch.bmm(x[None], weight[None])[0], x)
        else:
            made = recorded(lambda x: torch.mm(x, weight), x)
        assert (count(made, "expand.default") == 1) == (rows <= 16)
        for _ in range(2):
            expected = x.numpy().astype("float64") @ weight.numpy().astype("float64")
            np.testing.assert_allclose(made(x).numpy(), expected, atol=2e-5)
            weight *= -2  # in place, as an optimizer does it
    finally:
        torch.set_num_threads(threads)


def test_products_with_a_small_weight_are_left_alone():
    weight = numbers(64, 128)
    made = recorded(lambda x: torch.mm(x, weight), numbers(2, 64))
    assert count(made, "mm.default") == 1


def test_blocks_of_columns_are_equal_and_wide():
    from kerasattention.decoding.backends.columns_torch import count_blocks

    assert count_blocks(576, threads=2) == 4
    assert count_blocks(576, threads=16) == 9  # of 64 columns each
    assert count_blocks(192, threads=2) == 3
    assert count_blocks(49152, threads=8) == 16
    assert count_blocks(100, threads=8) == 1
    assert count_blocks(257, threads=8) == 1  # a prime


@pytest.mark.parametrize(
    ("subscripts", "axes"),
    [
        ("btd,dnh->btnh", 1),
        ("btnh,nhd->btd", 2),
        ("ab,bc->ac", 1),
        ("abc, cd -> abd", 1),
        ("btnh,hnd->btd", None),  # the axes do not come in the same order
        ("ab,bc->ca", None),
        ("ab,cb->ac", None),
        ("ab,ab->", 2),
        ("ab,cd->abcd", None),
        ("ab,bc", None),
        ("bqd,bkd->bqk", None),
    ],
)
def test_subscripts_of_one_product_are_known(subscripts, axes):
    from kerasattention.decoding.backends.int8_prompts_torch import summed_axes

    assert summed_axes(subscripts) == axes


def whole_numbers(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(-127, 128, shape, dtype="int8"))


@pytest.mark.parametrize(
    ("subscripts", "left", "right"),
    [
        ("btd,dnh->btnh", (2, 3, 16), (16, 4, 8)),
        ("btnh,nhd->btd", (2, 3, 4, 8), (4, 8, 24)),
        ("btnh,hnd->btd", (2, 3, 4, 8), (8, 4, 24)),
        ("bqd,bkd->bqk", (2, 3, 16), (2, 5, 16)),
    ],
)
def test_int8_products_are_the_whole_numbers_that_int32_gives(subscripts, left, right):
    from kerasattention.decoding.backends.int8_prompts_torch import _Int8Products

    left, right = whole_numbers(*left), whole_numbers(*right, seed=2)
    expected = np.einsum(subscripts, left.numpy().astype("int64"), right.numpy().astype("int64"))
    with _Int8Products([right]):
        made = torch.einsum(subscripts, left.to(torch.int32), right.to(torch.int32))
    np.testing.assert_array_equal(made.numpy(), expected)
    assert made.dtype == torch.int32


@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 16)])
def test_int8_matrices_are_multiplied_as_int8(shape, monkeypatch):
    from kerasattention.decoding.backends import int8_prompts_torch

    left, right = whole_numbers(*shape), whole_numbers(16, 24, seed=2)
    called = []
    product = int8_prompts_torch._product
    monkeypatch.setattr(
        int8_prompts_torch, "_product", lambda *x, **y: called.append(1) or product(*x, **y)
    )
    with int8_prompts_torch._Int8Products([right]):
        made = torch.matmul(left.to(torch.int32), right.to(torch.int32))
    expected = left.numpy().astype("int64") @ right.numpy().astype("int64")
    np.testing.assert_array_equal(made.numpy(), expected)
    assert called


@pytest.mark.parametrize("is_weight", [True, False])
def test_an_int8_cast_that_is_no_product_gives_its_numbers(is_weight):
    from kerasattention.decoding.backends.int8_prompts_torch import _Int8Products

    x = whole_numbers(3, 4)
    with _Int8Products([x] if is_weight else []):
        cast = x.to(torch.int32)
        assert cast.shape == x.shape
        assert cast.dtype == torch.int32
        more, both = cast + 1000, torch.cat([cast, cast])
    np.testing.assert_array_equal(more.numpy(), x.numpy().astype("int32") + 1000)
    np.testing.assert_array_equal(both.numpy(), np.concatenate([x.numpy()] * 2))


def test_an_int8_cast_that_is_changed_is_multiplied_as_it_is_then():
    from kerasattention.decoding.backends.int8_prompts_torch import _Int8Products

    x, weight = whole_numbers(3, 16), whole_numbers(16, 8, seed=2)
    with _Int8Products([weight]):
        cast = x.to(torch.int32)
        cast.add_(1000)
        made = torch.matmul(cast, weight.to(torch.int32))
    expected = (x.numpy().astype("int64") + 1000) @ weight.numpy().astype("int64")
    np.testing.assert_array_equal(made.numpy(), expected)
