"""The plot: time and memory against length, Keras's layer and ours, each backend."""

from pathlib import Path

from registry import KERAS, OURS, Case

STYLES = {
    (KERAS, ""): {"color": "#b2182b", "label": "Keras"},
    (KERAS, "-window"): {"color": "#b2182b", "linestyle": "--", "label": "Keras, window 256"},
    (OURS, ""): {"color": "#2166ac", "label": "kerasattention"},
    (OURS, "-window"): {
        "color": "#2166ac",
        "linestyle": "--",
        "label": "kerasattention, window 256",
    },
}


def draw(cases: dict[str, Case], results: dict[str, dict], path: Path) -> None:
    """Two rows of panels, a column for each backend that has results."""
    results = {b: r for b, r in results.items() if any(n.startswith("curve-") for n in r)}
    if not results:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        2, len(results), figsize=(3.4 * len(results), 6.4), sharex=True, sharey="row", squeeze=False
    )
    for column, (backend, kept) in enumerate(results.items()):
        for (label, suffix), style in STYLES.items():
            points = curve(kept, label, suffix)
            lengths = [length for length, _, _ in points]
            for row, values in enumerate(([p[1] / 1000 for p in points], [p[2] for p in points])):
                panels[row, column].plot(lengths, values, marker="o", markersize=3, **style)
        panels[0, column].set_title(backend)
        panels[1, column].set_xlabel("length T")
    for panel in panels.flat:
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("forward, seconds")
    panels[1, 0].set_ylabel("memory above idle, GB")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle("Causal attention on CPU: D = 512, 8 query and 2 key/value heads", fontsize=11)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def curve(kept: dict, label: str, suffix: str) -> list[tuple[int, float, float]]:
    """(length, milliseconds, GB), by length."""
    points = []
    for name, result in kept.items():
        body = name.removeprefix("curve-")
        if not name.startswith("curve-") or body.removesuffix("-window") + suffix != body:
            continue
        if label in result.get("memories", {}):
            length = int(body.removesuffix("-window"))
            points.append((length, result["times"][label]["median"], result["memories"][label]))
    return sorted(points)
