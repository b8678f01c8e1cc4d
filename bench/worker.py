"""Measures one case in this process and prints it as JSON; `run.py` starts it with a backend."""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from registry import Settings, all_cases


def main(name: str, part: str, quick: str) -> None:
    settings = Settings.brief() if quick == "quick" else Settings()
    measure = all_cases()[name].measure
    result = measure(settings, part) if part else measure(settings)
    # The last line: backends print what they like before it.
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:4])
