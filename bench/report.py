"""What a result says: one line for the terminal, a markdown page for each backend."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

from registry import KERAS, OURS, Case

PACKAGES = {"tensorflow": ("tensorflow-cpu", "tensorflow"), "jax": ("jax",), "torch": ("torch",)}
# Tables in the order of the page; groups of later files follow under their own names.
TITLES = {
    "time": "Time: Keras's layer against ours, the same weights",
    "memory": "Memory above the idle process",
    "limit": "Against the limit of the machine",
    "decoding": "Generation with a key/value cache",
    "options": "Options",
    "peers": "Other libraries",
    "models": "A published model",
    "curve": "Over length",
}


def circumstances(backend: str) -> dict:
    """Date, versions and machine, kept beside each result."""
    return {
        "date": datetime.date.today().isoformat(),
        "versions": f"{backend} {version(*PACKAGES[backend])}, Keras {version('keras')}, "
        f"Python {platform.python_version()}",
        "machine": machine(),
    }


def version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{model}, {cores} cores, {memory:.0f} GB, {platform.system()}"


def verdict(case: Case, backend: str, result: dict) -> tuple[str, str]:
    """The floor and whether it is met."""
    floor = case.floors.get(backend)
    if floor is None:
        return "", ""
    if floor.of not in result:
        return str(floor), "no figure"
    return str(floor), "yes" if floor.met(result[floor.of]) else "**no**"


def one_line(case: Case, backend: str, result: dict) -> str:
    parts = [
        f"{label} {milliseconds(times)} ms" for label, times in result.get("times", {}).items()
    ]
    parts += [f"{label} {gb:.2f} GB" for label, gb in result.get("memories", {}).items()]
    parts += [f"ratio {result['ratio']:.2f}"] if "ratio" in result else []
    parts += [f"share {result['share']:.0%}"] if "share" in result else []
    parts += [result["note"]] if "note" in result else []
    floor, met = verdict(case, backend, result)
    parts += [f"floor {floor} met: {met.strip('*')}"] if floor else []
    parts += [f"largest difference {result['difference']:.1g}"] if "difference" in result else []
    parts += [f"ERROR {result['error']}"] if "error" in result else []
    return "; ".join(parts)


def milliseconds(times: dict) -> str:
    median = times["median"]
    return f"{median:.1f}" if median < 100 else f"{median:.0f}"


def markdown(cases: dict[str, Case], backend: str, results: dict) -> str:
    known = {name: case for name, case in cases.items() if name in results}
    newest = max(results.values(), key=lambda result: result["date"])
    lines = [
        f"# {backend}: speed and memory",
        "",
        "Made by `make bench`; change nothing by hand. Each case runs in its own process;",
        "what is compared is interleaved there, after a warm-up. Times are medians in ms, with",
        "the quartiles in brackets; a ratio is the other's median over ours. D = 512, N = 8,",
        "K = 2, H = 64, B = 1, causal, float32, unless a line says otherwise. 1 GB is 10^9 bytes.",
        "",
        f"{newest['machine']}; {newest['versions']}; {newest['date']}.",
    ]
    groups = dict.fromkeys([*TITLES, *(case.group for case in known.values())])
    for group in groups:
        members = {n: c for n, c in known.items() if c.group == group}
        if not members:
            continue
        table = {"memory": memory_table, "curve": memory_table}.get(group, time_table)
        lines += ["", f"## {TITLES.get(group, group.capitalize())}", ""]
        lines += table(members, backend, results)
    lines += others(known, results, newest)
    return "\n".join(lines) + "\n"


def time_table(members: dict[str, Case], backend: str, results: dict) -> list[str]:
    rows = []
    for name, case in members.items():
        result = results[name]
        times = dict(result.get("times", {}))
        ours = times.pop(OURS, None)
        figure = f"{result['ratio']:.2f}" if "ratio" in result else ""
        figure = f"{result['share']:.0%}" if "share" in result else figure
        compared = "; ".join(f"{label}: {spread(t)}" for label, t in times.items())
        remark = "; ".join(result[key] for key in ("note", "error") if key in result)
        rows.append(
            [case.title, compared, spread(ours), figure, *verdict(case, backend, result), remark]
        )
    if all(list(results[n].get("times", {}))[:1] == [KERAS] for n in members):
        rows = [[cell.replace(f"{KERAS}: ", "") for cell in row] for row in rows]
        head = ["", KERAS]
    else:
        head = ["", "compared with"]
    return table([*head, OURS, "figure", "floor", "met", "remark"], rows)


def memory_table(members: dict[str, Case], backend: str, results: dict) -> list[str]:
    rows = []
    for name, case in members.items():
        result = results[name]
        memories, times = result.get("memories", {}), result.get("times", {})
        cells = []
        for label in (KERAS, OURS):
            cells += [f"{memories[label]:.2f}" if label in memories else ""]
            cells += [milliseconds(times[label]) if label in times else ""]
        rows.append([case.title, *cells, *verdict(case, backend, result), result.get("error", "")])
    head = ["", f"{KERAS}, GB", f"{KERAS}, ms", f"{OURS}, GB", f"{OURS}, ms"]
    return table([*head, "floor", "met", "remark"], rows)


def spread(times: dict | None) -> str:
    if times is None:
        return ""
    digits = 1 if times["median"] < 100 else 0
    return f"{times['median']:.{digits}f} ({times['low']:.{digits}f}-{times['high']:.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, without the columns that are empty in every row."""
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    cut = [[row[i] for i in used] for row in [head, ["---"] * len(head), *rows]]
    return [f"| {' | '.join(row)} |" for row in cut]


def others(known: dict[str, Case], results: dict, newest: dict) -> list[str]:
    """Results from another day, machine or version than the head of the page says."""
    keys = ("date", "versions", "machine")
    old = {
        name: ", ".join(results[name][key] for key in keys if results[name][key] != newest[key])
        for name in known
    }
    lines = [f"- {known[name].title}: {what}" for name, what in old.items() if what]
    return ["", "Measured apart from the rest:", "", *lines] if lines else []
