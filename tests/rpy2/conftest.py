"""R and Python in one process: rpy2 starts R, whose reticulate finds this very Python."""

import atexit
import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


status = pytest.StashKey[int]()


def pytest_sessionfinish(session, exitstatus):
    session.config.stash[status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Ends the process at once, after all reports: R's event loop is not told that Python ends,
    calls rpy2's functions that are gone by then, and in some runs the process died of it."""
    if status in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[status])


@pytest.fixture(scope="session")
def ro():
    """`rpy2.robjects`, with the R package attached."""
    import rpy2.rinterface_lib.embedded as embedded
    import rpy2.robjects

    # R that ends at exit, after a backend has ended, aborts the process.
    atexit.unregister(embedded.endr)
    rpy2.robjects.r("suppressMessages({library(reticulate); library(kerasattention)})")
    return rpy2.robjects


@pytest.fixture
def from_r(ro):
    """Evaluates R code and gives its value, a Python object, without a copy.

    The keyword arguments are variables of the code. Objects pass through Python's main
    module, which R knows as `py`.
    """
    main = sys.modules["__main__"]

    def evaluate(code: str, **variables):
        for name, value in variables.items():
            setattr(main, name, value)
        assignments = "; ".join(f"{name} <- py${name}" for name in variables)
        ro.r(
            f"local({{ {assignments}\n"
            f"  py_set_attr(import_main(convert = FALSE), 'from_r', {{ {code} }}) }})"
        )
        return main.from_r

    return evaluate


@pytest.fixture
def message_of(ro):
    """Evaluates R code that must fail, and gives the class and the message of its error."""

    def evaluate(code: str) -> tuple[str, str]:
        result = ro.r(
            "tryCatch({ " + code + "; stop('no error') }, error = function(cnd)"
            " c(class(cnd)[[1]], conditionMessage(cnd)))"
        )
        return result[0], result[1]

    return evaluate
