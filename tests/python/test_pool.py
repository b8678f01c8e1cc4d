"""The decoders that a model keeps for later calls."""

import pytest

from decoding_models import attending, model_of
from kerasattention.decoding import pool


@pytest.fixture
def model():
    return model_of(attending())


def idle(model):
    return [x.decoder for x in pool._idle.get(model, [])]


def test_a_decoder_serves_the_next_call_of_the_same_rows(model):
    with pool.borrowed_decoder(model, 2, 50) as first:
        assert first.max_length == 64
        assert idle(model) == []
    assert idle(model) == [first]
    with (
        pool.borrowed_decoder(model, 2, 64) as second,
        pool.borrowed_decoder(model, 2, 64) as third,
    ):
        assert second is first
        assert third is not first
    with pool.borrowed_decoder(model, 3, 50) as other:
        assert other.batch_size == 3
    assert len(idle(model)) == pool.KEPT


def test_a_decoder_that_is_too_short_gives_way_to_one_of_twice_its_length(model):
    with pool.borrowed_decoder(model, 2, 50):
        pass
    with pool.borrowed_decoder(model, 2, 65) as longer:
        assert longer.max_length == 128
    assert idle(model) == [longer]


def test_a_decoder_much_too_long_is_left_in_the_pool(model):
    with pool.borrowed_decoder(model, 2, 200) as long:
        pass
    with pool.borrowed_decoder(model, 2, 10) as short:
        assert short.max_length == 64
    assert idle(model) == [long, short]


def test_a_decoder_whose_run_was_broken_off_is_dropped(model):
    with pool.borrowed_decoder(model, 2, 10) as decoder:
        decoder.is_broken = True
    assert idle(model) == []
