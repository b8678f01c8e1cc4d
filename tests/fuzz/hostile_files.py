"""Reads mutated files as the package and its examples do; each finding is one line.

    python tests/fuzz/hostile_files.py --backend torch --seed 1 --seconds 120
    python tests/fuzz/hostile_files.py --backend torch --seed 1 --format keras --case 17

A mutated `.keras`, `.weights.h5`, safetensors or GGUF file must give an exception or a working
model: no code of the file may run, no process may end, and nothing may be allocated that the
file does not justify. Files are read in child processes whose memory is limited. `main()` gives
the lines of findings; a line says where memory ran out, since much of the reading is Keras's,
h5py's or gguf's.
"""

import argparse
import base64
import copy
import io
import json
import marshal
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("keras", "h5", "safetensors", "gguf")
CASES = 1000
MEGABYTE = 2**20
ALLOWED = 400 * MEGABYTE  # what reading one of these files may add to the process's peak
SECONDS_A_CASE = 60
# Not ours, printed and not counted. gguf reads an array element by element, as many as its
# header says, before it looks whether the file has them.
KNOWN = ("took too long in gguf/gguf_reader.py",)
SENTINEL = "KERASATTENTION_SENTINEL"
HOSTILE = [0, -1, 1, 2**16, 2**31 - 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf")]
HOSTILE += [None, True, "", "x" * 1000, [], {}, [[]], [2**31 - 1] * 3, {"a": 1}, "int8", "float99"]


# Mutations -----------------------------------------------------------------------------


def mutate_bytes(content: bytes, random: np.random.Generator) -> bytes:
    data, size = bytearray(content), len(content)
    kind = random.integers(5)
    # Lengths and offsets stand at the start; half of the changes are made there.
    reach = min(size, 512) if random.random() < 0.5 else size
    start = int(random.integers(reach))
    if kind == 0:
        for place in random.integers(reach, size=int(random.integers(1, 20))):
            data[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        number = [2**63, 2**64 - 1, 2**31 - 1, size, 0, 2**40][random.integers(6)]
        data[start : start + 8] = struct.pack("<Q", number)
    elif kind == 3:
        data[start:start] = random.bytes(int(random.integers(1, 64)))
    else:
        end = start + int(random.integers(1, 200))
        data[start:end] = bytes(len(data[start:end]))
    return bytes(data)


def mutate_json(tree: Any, random: np.random.Generator) -> Any:
    """Changes one or two values, or puts in a layer or function that would run code."""
    for _ in range(int(random.integers(1, 3))):
        places = list(_places(tree))
        holder, key = places[random.integers(len(places))]
        value = copy.deepcopy(HOSTILE[random.integers(len(HOSTILE))])
        if isinstance(holder[key], dict) and random.random() < 0.3:
            value = _code()
        elif key in ("class_name", "module", "registered_name"):
            names = ["eval", "os", "builtins", "system", "kerasattention>RotaryPosition", "Lambda"]
            value = names[random.integers(len(names))]
        holder[key] = value
    return tree


def _places(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def _code() -> dict[str, Any]:
    """A lambda as Keras saves it, which would leave a file."""
    source = f"lambda x: open(__import__('os').environ['{SENTINEL}'], 'w').close() or x"
    code = marshal.dumps(eval(source).__code__)
    function = [base64.b64encode(code).decode(), None, None]
    return {"class_name": "__lambda__", "config": {"value": function}}


def mutate(kind: str, content: bytes, random: np.random.Generator) -> bytes:
    if kind == "keras" and random.random() < 0.8:
        return _mutate_archive(content, random)
    if kind == "safetensors" and random.random() < 0.6:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        changed = json.dumps(mutate_json(header, random)).encode()
        return struct.pack("<Q", len(changed)) + changed + content[8 + length :]
    return mutate_bytes(content, random)


def _mutate_archive(content: bytes, random: np.random.Generator) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    kind = random.random()
    if kind < 0.6:
        config = mutate_json(json.loads(members["config.json"]), random)
        members["config.json"] = json.dumps(config).encode()
    elif kind < 0.8:
        name = "model.weights.h5"
        members[name] = mutate_bytes(members[name], random)
    else:
        name = sorted(members)[random.integers(len(members))]
        moved = members.pop(name)
        if random.random() < 0.7:
            members[["../evil", "/evil", "config.json/", name.upper()][random.integers(4)]] = moved
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return changed.getvalue()


# Files and readers, in a child ----------------------------------------------------------


def small_model() -> Any:
    import keras

    import kerasattention as ka

    inputs = keras.Input((5, 6))
    x = ka.MultiHeadAttention(2, 4, name="mha", position=ka.RelativePosition(8, 6))(inputs)
    options = {"position": ka.RotaryPosition(), "qk_norm": True, "attention_sink": True}
    x = ka.GroupQueryAttention(4, 2, 1, name="gqa", use_gate=True, **options)(x)
    return keras.Model(inputs, x)


def seed_files(folder: Path) -> dict[str, bytes]:
    import gguf
    import safetensors.numpy

    model = small_model()
    model.compile("adam", "mse")
    model.save(folder / "seed.keras")
    model.save_weights(folder / "seed.weights.h5")
    arrays = {name: np.ones((8, 6), "float32") for name in ("query", "key", "value")}
    arrays["output"] = np.ones((6, 8), "float32")
    safetensors.numpy.save_file(arrays, folder / "seed.safetensors")
    writer = gguf.GGUFWriter(folder / "seed.gguf", "llama")
    writer.add_block_count(1)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    endings = {"keras": "keras", "h5": "weights.h5", "safetensors": "safetensors", "gguf": "gguf"}
    return {kind: (folder / f"seed.{ending}").read_bytes() for kind, ending in endings.items()}


def readers() -> dict[str, Callable[[Path], None]]:
    import gguf
    import keras
    import safetensors.numpy

    import kerasattention as ka

    model = small_model()
    layer = ka.MultiHeadAttention(2, 4, use_bias=False)
    layer.build((None, 5, 6))

    def read_model(path: Path) -> None:
        loaded = keras.saving.load_model(path, safe_mode=True)
        shape = [size or 1 for size in loaded.input_shape]
        if np.prod(shape, dtype="float64") < 10_000:
            loaded(np.zeros(shape, "float32"))

    def project(arrays: dict[str, Any]) -> None:
        names = ("query", "key", "value", "output")
        ka.load_projections(layer, *(arrays[name] for name in names))

    def read_gguf(path: Path) -> None:
        tensors = gguf.GGUFReader(path).tensors
        project({t.name: gguf.dequantize(t.data, t.tensor_type) for t in tensors})

    return {
        "keras": read_model,
        "h5": lambda path: model.load_weights(path),
        "safetensors": lambda path: project(safetensors.numpy.load_file(path)),
        "gguf": read_gguf,
    }


def child(seed: int, kind: str, cases: range) -> None:
    """Reads one mutated file after another; its lines tell the parent how far it came."""
    # The parent reads this; warnings and whatever a reader prints must not be in between.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[SENTINEL] = str(folder / "sentinel")
        content, read = seed_files(folder)[kind], readers()[kind]
        ending = "weights.h5" if kind == "h5" else kind
        path = folder / f"seed.{ending}"
        read(path)  # what is not mutated is read without an error
        signal.signal(signal.SIGALRM, _too_long)
        limit = _kilobytes("VmSize") * 1024 + 4096 * MEGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for case in cases:
            print("case", case, file=lines)
            random = np.random.default_rng([seed, FORMATS.index(kind), case])
            path.unlink()  # gguf may still have the last one mapped
            path.write_bytes(mutate(kind, content, random))
            before, outcome = _kilobytes("VmHWM"), ""
            signal.alarm(SECONDS_A_CASE // 3)
            try:
                read(path)
            except TimeoutError:
                outcome = f"took too long in {_where()}"
            except MemoryError:
                outcome = f"memory ran out in {_where()}"
            except Exception as error:
                # torch's and TensorFlow's words; h5py says the like of any broken file.
                if "DefaultCPUAllocator" in str(error) or "OOM" in str(error):
                    outcome = f"memory ran out in {_where()}"
            except BaseException as error:
                outcome = f"{type(error).__name__} in {_where()}"
            signal.alarm(0)
            if (_kilobytes("VmHWM") - before) * 1024 > ALLOWED:
                outcome = outcome or "more memory than the file justifies"
            if os.path.exists(os.environ[SENTINEL]):
                os.remove(os.environ[SENTINEL])
                outcome = "code of the file was executed"
            print("done", outcome, file=lines)


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError


def _kilobytes(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(f"{name}:"))


def _where() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    frames = [f for f in frames if f.filename != __file__] or frames
    ours = [f for f in frames if "kerasattention/" in f.filename]
    frame = (ours or frames)[-1]
    return "/".join(Path(frame.filename).parts[-2:]) + f":{frame.lineno}"


# The parent ----------------------------------------------------------------------------


def main(seed: int, seconds: float, backend: str, kinds: tuple[str, ...] = FORMATS) -> list[str]:
    """Runs up to 1,000 cases of each format within the seconds; prints and gives findings."""
    findings: list[str] = []
    end = time.monotonic() + seconds
    for index, kind in enumerate(kinds):
        until = time.monotonic() + (end - time.monotonic()) / (len(kinds) - index)
        case = 0
        while case < CASES and time.monotonic() < until:
            case = _run(seed, backend, kind, range(case, CASES), until, findings)
        print(f"{kind}: {case} files, seed {seed}, {backend}", flush=True)
    return findings


def _run(
    seed: int, backend: str, kind: str, cases: range, until: float, findings: list[str]
) -> int:
    """One child for as long as it lives; gives the next case."""
    command = [sys.executable, __file__, "--backend", backend, "--seed", str(seed)]
    command += ["--format", kind]
    process = subprocess.Popen(
        [*command, "--child", str(cases.start), str(cases.stop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        bufsize=0,
    )
    lines, case = _Lines(process.stdout), None
    while time.monotonic() < until:
        line = lines.next(SECONDS_A_CASE + (120 if case is None else 0))
        word, _, rest = (line or "").partition(" ")
        if word == "case":
            case = int(rest)
            continue
        if word == "done" and not rest:
            continue
        if word != "done" and case == cases.stop - 1 and process.wait() == 0:
            return cases.stop
        if case is None:
            process.kill()
            raise RuntimeError(f"The child that reads {kind} does not start: {command}")
        what = rest if word == "done" else "took too long" if line is None else "ended the process"
        finding = f"{' '.join(command)} --case {case}  # {what}"
        print(finding, flush=True)
        if not what.startswith(KNOWN):
            findings.append(finding)
        if word != "done":
            break
    process.kill()
    process.wait()
    return cases.start if case is None else case + 1


class _Lines:
    """Lines of a pipe, each waited for a limited time."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.rest = stream, b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(stream, selectors.EVENT_READ)

    def next(self, seconds: float) -> str | None:
        """A line; "" at the end, None when none came in time."""
        while b"\n" not in self.rest:
            if not self.selector.select(seconds):
                return None
            more = self.stream.read(65536)
            if not more:
                return ""
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode().strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument("--case", type=int)
    parser.add_argument("--child", type=int, nargs=2)
    given = parser.parse_args()
    if given.child:  # the parent has set the backend
        child(given.seed, given.format, range(*given.child))
    elif given.case is not None:
        os.environ["KERAS_BACKEND"] = given.backend
        child(given.seed, given.format, range(given.case, given.case + 1))
    else:
        kinds = (given.format,) if given.format else FORMATS
        sys.exit(1 if main(given.seed, given.seconds, given.backend, kinds) else 0)
