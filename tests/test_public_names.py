"""The public names, once, in `public_names.txt`: a change of the interface shows in the diff.

Regenerate by `make public-names`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

PUBLIC = [
    "lmppl",
    "lmppl.graphs",
    "lmppl.graphs.methods",
    "lmppl.handlers",
    "lmppl.inference",
    "lmppl.inference.learning",
    "lmppl.inference.planning",
    "lmppl.lm",
    "lmppl.testing",
    "lmppl.token_potentials",
]
RECORD = Path(__file__).with_name("public_names.txt")

if __name__ == "__main__":  # before anything is looked up: tests/lmppl would answer for lmppl
    sys.path[0] = str(RECORD.parent.parent)


def present() -> list[str]:
    """The public modules that exist; a folder without `__init__.py` does not count."""
    specs = {module: importlib.util.find_spec(module) for module in PUBLIC}
    return [module for module, spec in specs.items() if spec is not None and spec.has_location]


def offered(module: str) -> list[str]:
    """The names of `__all__`; without one, the functions and classes that the module defines."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return sorted(loaded.__all__)
    defined = [n for n, v in vars(loaded).items() if getattr(v, "__module__", None) == module]
    return sorted(name for name in defined if not name.startswith("_"))


def recorded() -> dict[str, list[str]]:
    """Sections `[module]`, then one name a line."""
    sections: dict[str, list[str]] = {}
    names: list[str] = []
    for line in RECORD.read_text().splitlines():
        if line.startswith("["):
            names = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            names.append(line)
    return sections


def write() -> None:
    lines = ["# The public names of each module. Regenerate by `make public-names`."]
    for module in present():
        lines += ["", f"[{module}]", *offered(module)]
    RECORD.write_text("\n".join(lines) + "\n")


def test_every_public_module_is_recorded() -> None:
    assert sorted(recorded()) == present(), "regenerate by `make public-names`"


@pytest.mark.parametrize("module", present())
def test_names_are_as_recorded(module: str) -> None:
    names = offered(module)
    assert len(set(names)) == len(names)
    assert names == recorded().get(module), "if this is meant, run `make public-names`"


@pytest.mark.parametrize("module", present())
def test_names_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in offered(module) if not hasattr(loaded, name)]
    assert not missing


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_public_names.py --write")
    write()
    print(f"wrote {RECORD.name}: {', '.join(f'{m} {len(offered(m))}' for m in present())}")
    print(f"absent: {', '.join(sorted(set(PUBLIC) - set(present()))) or 'none'}")
