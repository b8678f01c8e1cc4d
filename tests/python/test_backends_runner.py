"""The end of a step in the loop over new tokens."""

import types

import numpy as np

from backends import tensor, to_numpy
from kerasattention.decoding.backends.runner import LoopState, choose_next

PLAN = types.SimpleNamespace(probabilities=False)
GREEDY = ((True, None, False), (0.0, 1.0, 0))


def choose(logits, tokens, finished, stop=(), plan=PLAN):
    kind, numbers = GREEDY
    tokens, finished, stop = (
        tensor(np.array(x, dtype))
        for x, dtype in ((tokens, "int32"), (finished, bool), (stop, "int32"))
    )
    state = LoopState(kind, numbers, tokens, 3, 1, 1, None, finished, stop)
    found = choose_next(plan, state, tensor(np.array(logits, "float32")), 3, tokens, finished)
    return [to_numpy(x).tolist() for x in found]


LOGITS = [[0.0, 2.0, 1.0], [5.0, 2.0, 1.0], [0.0, 1.0, 2.0]]


def test_finished_rows_repeat_their_token():
    assert choose(LOGITS, [2, 2, 1], [False, True, False]) == [
        [1, 2, 2],
        [False, True, False],
        False,
    ]


def test_a_stop_token_finishes_its_row():
    tokens, finished, _ = choose(LOGITS, [2, 2, 1], [False] * 3, stop=[7, 1, 0])
    assert tokens == [1, 0, 2]
    assert finished == [True, True, False]


def test_logits_without_a_possible_token_are_announced():
    for bad in ([np.nan, 1.0, 2.0], [-np.inf] * 3):
        assert choose([*LOGITS[:2], bad], [0] * 3, [False] * 3)[2]


def test_the_likeliest_of_probabilities_is_chosen():
    plan = types.SimpleNamespace(probabilities=True)
    tokens, _, failed = choose([[0.0, 0.3, 0.7]], [0], [False], plan=plan)
    assert (tokens, failed) == ([2], False)
