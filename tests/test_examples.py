"""Every example runs at its default size, and asserts a number known by other means.

An example that needs more than the core says so: `NEEDS = "smollm2"` marks it `model`, any other
word (or a tuple of them) is a package without which it is skipped. `SLOW = True` leaves it to
`make test-all`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.rglob("*.py"))


def needs(source: str) -> list[str]:
    """The words of `NEEDS`, read without running the file."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NEEDS":
            value = ast.literal_eval(node.value)
            return [value] if isinstance(value, str) else list(value)
    return []


def has_assert(source: str) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source)))


def parameter(path: Path) -> Any:
    source = path.read_text()
    marks = [pytest.mark.model] if "smollm2" in needs(source) else []
    if "\nSLOW = True\n" in source:
        marks.append(pytest.mark.slow)
    return pytest.param(path, marks=marks, id=str(path.relative_to(FOLDER)))


@pytest.mark.parametrize("path", [parameter(path) for path in EXAMPLES])
def test_example(
    path: Path,
    load_file: Callable[[Path], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for word in needs(path.read_text()):
        if word != "smollm2":
            pytest.importorskip(word)
    monkeypatch.chdir(tmp_path)  # whatever it writes stays out of the repository
    monkeypatch.setattr("sys.argv", [str(path)])
    main = load_file(path).main
    required = [
        p.name
        for p in inspect.signature(main).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    assert not required, f"main() of {path.name} has no default for {required}"
    main()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_checks_itself(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "the docstring says what it shows"
    assert has_assert(source), "an example ends in an assert of a known number"
    assert 'if __name__ == "__main__":' in source


def test_needs_are_read_from_the_source() -> None:
    assert needs('NEEDS = "smollm2"\nimport nothing') == ["smollm2"]
    assert needs('NEEDS = ("jax", "numpyro")') == ["jax", "numpyro"]
    assert needs("x = 1") == []
