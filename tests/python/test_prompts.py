"""Token ids and prompts: checked, padded, and joined with their continuations."""

import numpy as np
import pytest

from backends import tensor
from kerasattention.decoding import prompts
from kerasattention.decoding.prompts import Prompts


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 29], "whole numbers from 0 to 28, the model has 29.*: 29"),
        ([-1], "from 0 to 28"),
        ([1.5, 2.0], "Received: 1.5"),
        ([np.nan], "Received: nan"),
        (["a"], "Received: 'a'"),
        ([True], "Received: True"),
        ([30, 31, 32, 33], r"30, 31, 32, \.\.\."),
    ],
)
def test_ids_that_a_model_does_not_know(tokens, message):
    with pytest.raises(ValueError, match=f"`tokens` must be token ids.*{message}"):
        prompts.check_token_ids("tokens", np.array(tokens), 29)


def test_whole_numbers_of_any_dtype_are_ids():
    found = prompts.check_token_ids("tokens", np.array([0.0, 28.0]), 29)
    assert found.dtype == "int32"
    np.testing.assert_array_equal(found, [0, 28])
    with pytest.raises(ValueError, match="to 2147483646"):
        prompts.check_token_ids("tokens", np.array([2**31 - 1]))


def test_shorter_prompts_are_padded_on_the_left():
    padded, padding = prompts.pad_left([[1, 2, 3], tensor(np.array([4])), [5, 6]])
    np.testing.assert_array_equal(padded, [[1, 2, 3], [0, 0, 4], [0, 5, 6]])
    np.testing.assert_array_equal(padding, [0, 2, 1])
    for equal in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])):
        padded, padding = prompts.pad_left(equal)
        np.testing.assert_array_equal(padded, [[1, 2], [3, 4]])
        assert padding is None
    with pytest.raises(ValueError, match="at least one token"):
        prompts.pad_left([[1], []])


def test_lengths_are_rounded_up_to_few():
    pairs = {1: 8, 8: 8, 9: 16, 100: 128, 256: 256, 257: 512, 512: 512, 513: 768}
    assert {count: prompts.rounded_length(count) for count in pairs} == pairs
    tokens = np.ones((2, 3, 5), "int32")
    padded = prompts.pad_right(tokens, 7)
    assert padded.shape == (2, 7, 5)
    assert not padded[:, 3:].any()
    assert padded[:, :3].all()
    assert prompts.pad_right(tokens, 2) is tokens


MADE = np.array([[7, 8, 9], [8, 9, 8]])
STOP = np.array([8])


@pytest.mark.parametrize(
    ("tokens", "copies", "form", "expected"),
    [
        ([1, 2], 1, "vector", [1, 2, 7, 8, 9]),
        ([1, 2], 2, "matrix", [[1, 2, 7, 8, 9], [1, 2, 8, 9, 8]]),
        (np.array([[1], [2]]), 1, "matrix", [[1, 7, 8, 9], [2, 8, 9, 8]]),
        # Each of a list ends with its stop token.
        ([[1], [2, 3]], 1, "list", [[1, 7, 8], [2, 3, 8]]),
    ],
)
def test_results_have_the_form_of_the_prompts(tokens, copies, form, expected):
    given = Prompts.of(tokens, copies)
    assert given.form == form
    made = MADE[: given.rows]
    found = given.joined(made, STOP)
    if form == "list":
        assert [row.tolist() for row in found] == expected
    else:
        np.testing.assert_array_equal(found, expected)


def test_continuations_of_one_prompt_stand_together():
    given = Prompts.of([[1], [2, 3]], 2)
    assert (given.rows, given.length) == (4, 2)
    assert [row.tolist() for row in given.repeated] == [[1], [1], [2, 3], [2, 3]]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "at least one token"),
        ([[]], "at least one"),
        (np.ones((1, 2, 3)), r"shape \(1, 2, 3\)"),
    ],
)
def test_what_is_no_prompt(tokens, message):
    with pytest.raises(ValueError, match=message):
        Prompts.of(tokens, 1)


def test_stop_tokens():
    assert prompts.as_stop(None).tolist() == []
    assert prompts.as_stop(3).tolist() == [3]
    assert prompts.as_stop([3, 5]).dtype == "int32"
    with pytest.raises(ValueError, match=r"`stop_token` must be `None` or token ids.*-1"):
        prompts.as_stop([-1])
