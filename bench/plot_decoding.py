"""The plot of the paper's effect: a decoding step against the number of key/value heads."""

from pathlib import Path

COLOURS = {"tensorflow": "#d95f02", "jax": "#2166ac", "torch": "#7570b3"}


def draw(results: dict[str, dict], path: Path) -> None:
    """A line for each backend that has the case "decode-step"."""
    kept = {
        b: r["decode-step"] for b, r in results.items() if r.get("decode-step", {}).get("times")
    }
    if not kept:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(5.6, 4.2))
    for backend, result in kept.items():
        points = sorted(by_heads(result["times"]).items())
        heads, medians = zip(*points, strict=True)
        panel.plot(heads, medians, marker="o", markersize=4, label=backend, color=COLOURS[backend])
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xticks(heads, [str(k) for k in heads])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xlabel("key/value heads K, of N = 32 query heads")
    panel.set_ylabel("one step, ms")
    panel.set_title("A decoding step at 4,096 cached tokens, H = 64, B = 8", fontsize=10)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def by_heads(times: dict[str, dict]) -> dict[int, float]:
    """Median milliseconds by K, from labels such as "K = 8"."""
    return {int(label.removeprefix("K = ")): spread["median"] for label, spread in times.items()}
