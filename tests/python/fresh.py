"""Code in a fresh Python process, in which nothing is set."""

import os
import socket
import subprocess
import sys

import kerasattention

# Some modules are not found.
WITHOUT = """
import importlib.machinery, os, sys
finder = importlib.machinery.PathFinder
find_spec = finder.find_spec
def find_others(name, *args):
    return None if name in {modules!r} else find_spec(name, *args)
finder.find_spec = staticmethod(find_others)
"""

# XLA compiles the programs of the tests in a seventh of the time without optimisations.
_FAST_XLA = (
    *("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"),
    *("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"),
)


def xla_flags(devices):
    """`XLA_FLAGS` of a process in which JAX has so many devices."""
    return " ".join((f"--xla_force_host_platform_device_count={devices}", *_FAST_XLA))


def run_fresh(code, folder, without=(), status=0, **variables):
    """Its lines on standard output, and those on standard error. Keras's file is in `folder`.

    `variables` are of the environment; `PYTHONPATH` is the package that is tested unless given.
    """
    unset = {"KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    package = os.path.dirname(os.path.dirname(kerasattention.__file__))
    environment.update({"KERAS_HOME": str(folder), "PYTHONPATH": package} | variables)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(modules=list(without)) + code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def run_processes(code, folder, count=2, seconds=300, **variables):
    """Runs code in several processes, with the number of each and a free port as arguments.

    Gives for each its status, its lines on standard output, and the end of standard error.
    """
    script = folder / "process.py"
    script.write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    package = os.path.dirname(os.path.dirname(kerasattention.__file__))
    environment = {**os.environ, "PYTHONPATH": package, **variables}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(number), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        ended = [process.communicate(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        (process.returncode, _without_gloo(output), errors[-3000:])
        for process, (output, errors) in zip(started, ended, strict=True)
    ]


def _without_gloo(output):
    """The lines without those of the library that connects the processes.

    Its threads write at one time: one line may begin within another.
    """
    lines = output.splitlines()
    return [line for line in lines if "[Gloo]" not in line and "connected peer ranks" not in line]
