"""`generate()` from several threads, within a callback, and after a run that was broken off."""

import threading

import keras
import numpy as np
import pytest

import kerasattention as ka
from decoding_models import attending, full_pass, model_of, numpy

PROMPTS = [np.array([[1, 2, 3]]), np.array([[5, 7, 11]])]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return model_of(attending(position=ka.RotaryPosition()))


@pytest.fixture(scope="module")
def alone(model):
    return [ka.generate(model, prompt, 20) for prompt in PROMPTS]


def run_together(*functions):
    """What each gives, or the error that it raises, all started at once."""
    results, start = [None] * len(functions), threading.Barrier(len(functions))

    def work(index):
        try:
            start.wait()
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_on_one_model_give_what_each_gives_alone(model, alone):
    def generates(index):
        return lambda: [ka.generate(model, PROMPTS[index], 20) for _ in range(6)]

    def collects():
        return [ka.attention_scores(model, PROMPTS[0])[0].weights for _ in range(6)]

    maps = collects()
    found = run_together(generates(0), generates(1), collects)
    for index in range(2):
        np.testing.assert_array_equal(found[index], [alone[index]] * 6)
    np.testing.assert_array_equal(found[2], maps)


def test_a_run_within_a_callback_gives_what_it_gives_alone(model, alone):
    within = []

    def listen(tokens):
        within.append(ka.generate(model, PROMPTS[1], 20))

    found = ka.generate(model, PROMPTS[0], 20, callback=listen)
    np.testing.assert_array_equal(found, alone[0])
    np.testing.assert_array_equal(within, [alone[1]] * 20)


def test_one_decoder_refuses_a_second_thread(model, monkeypatch):
    decoder = ka.IncrementalDecoder(model, 1, 16)
    started, ended = threading.Event(), threading.Event()
    prefill = decoder._runner.prefill

    def slow(*arguments):
        started.set()
        assert ended.wait(60)
        return prefill(*arguments)

    def second():
        assert started.wait(60)
        try:
            for use in (lambda: decoder.prefill(PROMPTS[1]), decoder.reset):
                with pytest.raises(ValueError, match="running already, in another thread"):
                    use()
        finally:
            ended.set()

    monkeypatch.setattr(decoder._runner, "prefill", slow)
    logits, error = run_together(lambda: decoder.prefill(PROMPTS[0]), second)
    assert error is None
    np.testing.assert_allclose(
        numpy(logits), full_pass(model, PROMPTS[0])[:, -1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_was_broken_off_leaves_nothing_behind(model, alone, kind, monkeypatch):
    decoder = ka.IncrementalDecoder(model, 1, 32)
    decoder.prefill(PROMPTS[0])

    def broken(*arguments):
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(type(decoder._runner), "extend", broken)
        patch.setattr(type(decoder._runner), "decode_loop", broken)
        with pytest.raises(kind):
            decoder.step([4])
        with pytest.raises(kind):
            ka.generate(model, PROMPTS[1], 20)
    with pytest.raises(ValueError, match=r"broken off; call `reset\(\)`"):
        decoder.step([4])
    decoder.reset()
    expected = full_pass(model, PROMPTS[1])[:, -1]
    np.testing.assert_allclose(numpy(decoder.prefill(PROMPTS[1])), expected, rtol=1e-4, atol=1e-4)
    for prompt, tokens in zip(PROMPTS, alone, strict=True):
        np.testing.assert_array_equal(ka.generate(model, prompt, 20), tokens)


def test_an_error_of_a_callback_leaves_the_model_usable(model, alone):
    def fails(tokens):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        ka.generate(model, PROMPTS[0], 20, callback=fails)
    np.testing.assert_array_equal(ka.generate(model, PROMPTS[0], 20), alone[0])
