"""No import cycle: the package's modules form a graph with one direction.

Imports within functions count as well, and so do the kernels that the registry imports by name.
"""

import ast
from pathlib import Path

import kerasattention

ROOT = Path(kerasattention.__file__).parent
KERNELS = "kerasattention.attend.kernels"


def modules():
    """The package's modules by name, with their files."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["kerasattention", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _run_nodes(tree):
    """All nodes but those under `if TYPE_CHECKING:`, which never run."""
    yield tree
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            yield from _run_nodes(node)


def imported(tree, names):
    """The modules of the package that a module imports anywhere in its text."""
    for node in _run_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # A module of a package, or a name of a module.
                inner = f"{node.module}.{alias.name}"
                yield from [name for name in (inner, node.module) if name in names][:1]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "_imported":
            yield f"{KERNELS}.{node.args[0].value}"


def graph():
    names = modules()
    return {
        name: set(imported(ast.parse(path.read_text()), names)) - {name}
        for name, path in names.items()
    }


def cycle(edges):
    """A path that ends where it began, or None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for target in sorted(edges[name]):
            found = visit(target)
            if found:
                return found
        done.add(path.pop())
        return None

    for name in edges:
        found = visit(name)
        if found:
            return found
    return None


def test_imports_form_no_cycle():
    found = cycle(graph())
    assert found is None, " -> ".join(found)


def test_a_cycle_would_be_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_every_kernel_is_imported_by_the_registry_alone():
    """Kernels share helpers, and only the table refers to them from above."""
    rows = graph()["kerasattention.attend.registry"]
    assert {name for name in rows if name.startswith(KERNELS)} >= {
        f"{KERNELS}.plain",
        f"{KERNELS}.torch.sdpa",
        f"{KERNELS}.jax.tiled",
        f"{KERNELS}.tensorflow.loop",
    }
