"""The architecture: imports point down, heavy packages stay inside, shipped code keeps the rules.

`lmppl` <- `lmppl.graphs` <- `lmppl.inference`, and the command line is the roof: it may import
anything and nothing imports it. Everything is read from the syntax tree; nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BELOW = {"lmppl": set[str](), "graphs": {"lmppl"}, "inference": {"lmppl", "graphs"}}
ROOF = ("lmppl.__main__", "lmppl.cli", "lmppl.commands")
"""The command line: its entry, and a folder with a file a command."""
HEAVY = {
    "arviz": "arviz",
    "gguf": "gguf",
    "h5netcdf": "netcdf",
    "jax": "jax",
    "llguidance": "llguidance",
    "networkx": "networkx",
    "numpyro": "numpyro",
    "pandas": "pandas",
    "pyro": "pyro",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "torch": "torch",
    "transformers": "transformers",
    "xarray": "xarray",
}
"""A heavy package, and the word by which the docstring of a file about it names it."""
NAMED = {
    "arviz": {"arviz", "h5netcdf", "pandas", "xarray"},
    "networkx": {"networkx"},
    "numpyro": {"jax", "numpyro"},
    "pyro": {"pyro", "torch"},
    "torch": {"gguf", "safetensors", "torch", "transformers"},
}
"""First word of a file's name -> what it may import at module level: it is of no use without."""
NUMERIC = {"inference/bffg/": {"jax"}, "lmppl/lm/torch/": NAMED["torch"]}
"""A folder that is about a package as a whole, and that nothing light imports."""
MODELS = {"gguf", "llguidance", "safetensors", "torch", "transformers"}
"""What `lmppl/lm/` is about as a whole, so that any of its functions may import it."""

MOST_LINES = 400


def shipped(folder: str) -> list[Path]:
    """The real files of a folder; rglob does not follow the two links."""
    return sorted((ROOT / folder).rglob("*.py"))


SHIPPED = [file for folder in BELOW for file in shipped(folder)]


def shown(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def layer(module: str) -> str | None:
    head, *rest = module.split(".")
    if head != "lmppl":
        return None
    return rest[0] if rest and rest[0] in ("graphs", "inference") else "lmppl"


def names(node: ast.AST) -> list[str]:
    """The modules that an import statement may load."""
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return []


def for_types_only(node: ast.AST) -> bool:
    """Whether this is the branch `if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def imports(node: ast.AST, inside: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Every import that can run: the module, its line, and whether it is inside a function."""
    for name in names(node):
        yield name, getattr(node, "lineno", 0), inside
    function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    unreached = node.body if isinstance(node, ast.If) and for_types_only(node) else []
    for child in ast.iter_child_nodes(node):
        if child not in unreached:
            yield from imports(child, inside or function)


def upward(source: str, folder: str) -> list[str]:
    """Imports of a layer that is not below, even for types alone."""
    allowed = BELOW[folder] | {folder, None}
    found = [name for node in ast.walk(ast.parse(source)) for name in names(node)]
    return [name for name in found if layer(name) not in allowed]


def of_it(name: str) -> bool:
    """Whether a module is the command line or a part of it."""
    return any(f"{name}.".startswith(f"{r}.") for r in ROOF)


def in_the_roof(file: Path) -> bool:
    """Whether a file is a part of the command line."""
    return of_it(".".join(file.relative_to(ROOT).with_suffix("").parts))


def of_the_roof(source: str) -> list[str]:
    """Imports of the command line, as a module or as a name of its package."""
    found = [name for node in ast.walk(ast.parse(source)) for name in names(node)]
    return [name for name in found if of_it(name)]


def misplaced(source: str, path: str = "lmppl/some.py") -> list[str]:
    """Heavy imports at module level, or in a file that is not about the package.

    A file named after a package imports it where it likes, and nothing light imports that file
    (test_light_import.py). Any other imports it inside functions, and says so in its docstring.
    """
    tree = ast.parse(source)
    about = (ast.get_docstring(tree) or "").lower()
    if path.startswith("lmppl/lm/"):
        about += " ".join(MODELS)
    found = []
    for name, line, inside in imports(tree):
        package = name.split(".")[0]
        if package not in HEAVY or package in NAMED.get(Path(path).stem.split("_")[0], ()):
            continue
        if any(path.startswith(f) and package in known for f, known in NUMERIC.items()):
            continue
        if not inside:
            found.append(f"line {line}: import {package} inside the function that needs it")
        elif HEAVY[package] not in about:
            found.append(f"line {line}: {package} in a file whose docstring does not name it")
    return found


def forbidden(source: str) -> list[str]:
    """What shipped code must not do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Assert):
            found.append(f"line {line}: assert vanishes under python -O; raise an error")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("eval", "exec"):
                found.append(f"line {line}: {node.func.id} runs whatever text it is given")
        if any(name.split(".")[0] in ("pickle", "marshal", "shelve") for name in names(node)):
            found.append(f"line {line}: pickle and its like run code on load; write JSON")
    return found


@pytest.mark.parametrize("folder", BELOW)
def test_imports_point_down(folder: str) -> None:
    for file in shipped(folder):
        if not in_the_roof(file):
            assert not upward(file.read_text(), folder), f"{shown(file)} imports from above"


def test_nothing_imports_the_roof() -> None:
    for file in SHIPPED:
        if not in_the_roof(file):
            assert not of_the_roof(file.read_text()), f"{shown(file)} imports the command line"


@pytest.mark.parametrize("file", SHIPPED, ids=shown)
def test_heavy_packages_stay_inside(file: Path) -> None:
    assert not misplaced(file.read_text(), shown(file))


@pytest.mark.parametrize("file", SHIPPED, ids=shown)
def test_shipped_code_keeps_the_rules(file: Path) -> None:
    source = file.read_text()
    assert not forbidden(source)
    lines = source.count("\n")
    assert lines <= MOST_LINES, f"{lines} lines: two things live in this file"


def test_the_checks_see_what_they_look_for() -> None:
    """Each check on a source that breaks its rule, and on the nearest one that does not."""
    assert upward("from lmppl.inference import infer", "graphs")
    assert upward("def f():\n    import lmppl.inference.smc", "lmppl")
    assert not upward("from lmppl.graphs import DAG", "inference")
    assert of_the_roof("from lmppl import cli")
    assert of_the_roof("from lmppl.cli import main")
    assert not of_the_roof("from lmppl.client import main")
    assert misplaced('"""About torch."""\nimport torch')
    assert misplaced('"""About torch."""\nclass A:\n    import torch.nn')
    assert misplaced('"""About nothing."""\ndef f():\n    import torch')
    assert not misplaced("def f():\n    import torch", "lmppl/lm/some.py")
    assert misplaced("import torch", "lmppl/lm/some.py")
    assert misplaced("import torch", "lmppl/numpyro.py")
    assert not misplaced("import jax", "inference/bffg/some.py")
    assert misplaced("import jax", "inference/some.py")
    assert not misplaced("import torch", "lmppl/lm/torch/draw.py")
    assert not misplaced('"""About Torch."""\ndef f():\n    from torch import nn')
    assert not misplaced("if TYPE_CHECKING:\n    import torch")
    assert misplaced("if TYPE_CHECKING:\n    pass\nelse:\n    import torch")
    assert forbidden("assert x") and forbidden("eval(x)") and forbidden("import pickle")
    assert not forbidden("evaluate(x)\nmodel.eval()")
