"""What TensorFlow writes about itself when it is loaded."""

import importlib.util
import signal
import sys

import keras
import pytest

from fresh import run_fresh
from kerasattention import _messages

# The file by itself, as R runs it: without Keras the processes take no time.
LOAD = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("messages", {_messages.__file__!r})
messages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(messages)
"""
LINES = b"\n".join(line.encode() for line in _messages.KNOWN_LINES)
INSIDE = f"""
with messages.without_known_lines():
    os.write(2, {LINES!r} + b"\\nE0000 something else\\n")
    print("of Python", file=sys.stderr)
"""


def test_known_lines_are_left_out_and_all_others_passed_on(tmp_path):
    after = "os.write(2, b'cpu_feature_guard.cc of the user\\n')"
    _, err = run_fresh(LOAD + INSIDE + after, tmp_path)
    assert err == ["E0000 something else", "of Python", "cpu_feature_guard.cc of the user"]


def test_standard_error_is_there_again_after_an_exception(tmp_path):
    code = """
try:
    with messages.without_known_lines():
        raise ImportError("no")
except ImportError:
    os.write(2, b"oneDNN custom operations are on\\n")
"""
    _, err = run_fresh(LOAD + code, tmp_path)
    assert err == ["oneDNN custom operations are on"]


def test_the_last_words_of_a_process_that_ends_arrive(tmp_path):
    code = """
with messages.without_known_lines():
    os.write(2, b"F0000 compiled to use AVX instructions\\n")
    os.abort()
"""
    _, err = run_fresh(LOAD + code, tmp_path, status=-signal.SIGABRT)
    assert err[0] == "F0000 compiled to use AVX instructions"


@pytest.mark.parametrize("before", ["os.close(2)", "sys.executable = 'no/such/python'"])
def test_without_standard_error_or_another_process_nothing_changes(tmp_path, before):
    code = f"""
{before}
with messages.without_known_lines():
    print("done")
"""
    out, _ = run_fresh(LOAD + code, tmp_path)
    assert out == ["done"]


def test_nothing_is_written_from_the_import_to_a_saved_model(tmp_path):
    code = f"""
import kerasattention, keras
input = keras.Input((3, 5))
model = keras.Model(input, kerasattention.MultiHeadAttention(2, 3)(input))
model.save({str(tmp_path / "model.keras")!r})
print("tensorflow" in sys.modules)
"""
    backend = keras.config.backend()
    out, err = run_fresh(code, tmp_path, KERAS_BACKEND=backend)
    assert err == []
    # Keras imports TensorFlow to write a config where it is installed.
    assert out == [str(importlib.util.find_spec("tensorflow") is not None)]


def test_the_finder_is_there_once_and_finds_what_the_others_find():
    finders = [finder for finder in sys.meta_path if isinstance(finder, _messages.QuietFinder)]
    assert len(finders) == 1
    assert _messages.install_finder() is finders[0]
    assert finders[0].find_spec("json") is None
