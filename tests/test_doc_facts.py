"""What pages say of the code: public names, tests named as proofs, files, modules and options.

Regenerate the list by `make public-names`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
API = ROOT / "docs" / "api.md"

EXPORTED = {
    "lmppl": "The language.",
    "lmppl.handlers": "Handlers: what changes the meaning of sites.",
    "lmppl.inference": "Engines and posteriors.",
    "lmppl.inference.learning": "Models trained on what engines infer.",
    "lmppl.inference.planning": "Agents that choose, and what they plan with.",
    "lmppl.graphs": "Structure: what depends on what, and graphs of thoughts.",
    "lmppl.graphs.methods": "Published ways of thinking, as graphs of thoughts.",
    "lmppl.testing": "Checks that you can run on your own programs, engines, distributions and models.",
    "lmppl.token_potentials": "What a string should be like, weighed while it is written; samplers.",
}
"""Modules whose `__all__` is the interface; `tests/public_names.txt` records them."""

BENEATH = {
    "lmppl.lm.base": ["LanguageModel", "Rows", "Drawn", "TokenLaw", "Capabilities", "Usage"],
    "lmppl.lm.table": ["TableLM"],
    "lmppl.lm.token_law": ["token_law"],
    "lmppl.lm.token_weights": ["TokenWeights"],
    "lmppl.lm.torch.model": ["TorchLM"],
    "lmppl.lm.load": ["available", "load"],
    "lmppl.distributions": ["Distribution", "after", "gather"],
    "lmppl.jobs": ["Draw", "Env"],
    "lmppl.trace": ["Trace", "Entry"],
    "lmppl.random": ["Chance", "GumbelMax", "fold", "draw"],
    "lmppl.weights": ["log_sum_exp", "log_mean_exp", "normalize", "ess"],
    "lmppl.ledger": ["Ledger", "ModelCost"],
    "lmppl.tools": ["calculate", "evaluate"],
    "lmppl.inference.learning.torch_train": ["TrainableLM", "Training"],
    "lmppl.inference.view.page": ["report_page"],
    "lmppl.inference.view.landscape": ["Landscape", "by_model", "landscape"],
    "lmppl.inference.results.history": ["History"],
    "lmppl.inference.results.posterior": ["population_posterior"],
    "lmppl.inference.machine.population": ["Machine"],
    "lmppl.inference.machine.particles": ["Particle"],
    "lmppl.inference.smc.resampling": ["systematic", "stratified", "residual", "multinomial"],
}
"""What one needs to extend the package, by the file it is in."""

HEAD = """# Public names

One line each, from the docstrings. `help(name)` has the rest. The names of all modules before
[Beneath](#beneath) are the interface: `tests/public_names.txt` records them, and a change shows in the
diff.
"""


def source_of(module: str) -> ast.Module:
    """The parsed file of a module, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text("utf-8"))


def written(module: str, name: str) -> str:
    """The first line of a docstring in a file."""
    for node in source_of(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise AssertionError(f"{module} has no {name}")


def exported(module: str) -> list[tuple[str, str]]:
    """The names of a public module with their first lines, in order."""
    loaded = importlib.import_module(module)
    found = []
    for name in sorted(loaded.__all__, key=str.lower):
        doc = getattr(loaded, name).__doc__ or ""
        found.append((name, doc.strip().partition("\n")[0]))
    return found


def table(rows: list[tuple[str, str]]) -> list[str]:
    lines = ["| name | |", "| --- | --- |"]
    return lines + [f"| `{name}` | {doc.replace('|', chr(92) + '|')} |" for name, doc in rows]


def page() -> str:
    lines = [HEAD]
    for module, about in EXPORTED.items():
        lines += [f"## {module}", "", about, "", *table(exported(module)), ""]
    lines += ["## Beneath", "", "For engines, distributions and backends of your own.", ""]
    for module, names in BENEATH.items():
        lines += [f"### {module}", "", *table([(n, written(module, n)) for n in names]), ""]
    return "\n".join(lines)


def test_the_list_of_names_is_the_code() -> None:
    assert API.read_text("utf-8") == page(), "regenerate by `make public-names`"


@pytest.mark.parametrize("module", EXPORTED)
def test_every_public_name_has_a_line(module: str) -> None:
    assert [name for name, doc in exported(module) if not doc] == []


def named_tests() -> list[tuple[str, str]]:
    """`tests/…/test_x.py::test_y` in the pages."""
    found: set[tuple[str, str]] = set()
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text("utf-8")
        found.update(re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", text))
    return sorted(found)


@pytest.mark.parametrize(("file", "name"), named_tests())
def test_a_named_proof_exists(file: str, name: str) -> None:
    path = ROOT / file
    assert path.is_file(), f"a page names {file}"
    names = [
        n.name
        for n in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(n, ast.FunctionDef)
    ]
    assert not name or name in names, f"a page names {file}::{name}"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = r"(?<![\w/.])((?:lmppl|inference|graphs|tests|examples|docs)/[\w./*-]*)"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_files_exist(page: Path) -> None:
    """Outside of blocks, which are run, and without the web's own paths."""
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    quoted = " ".join(re.findall(r"`([^`\n]+)`", prose))
    wanted = {name.rstrip("./") for name in re.findall(FILE, quoted) if "<" not in quoted}
    assert [name for name in sorted(wanted) if not list(ROOT.glob(name))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_modules_have_what_is_named(page: Path) -> None:
    assert [n for n in sorted(dotted(page.read_text("utf-8"))) if not is_there(n.split("."))] == []


def dotted(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])lmppl(?:\.[A-Za-z_]\w*)+", text))


def is_there(parts: list[str]) -> bool:
    """A module, or a word in the file of the nearest one: no module is imported for it."""
    for k in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:k])
        for file in (folder.with_suffix(".py"), folder / "__init__.py"):
            if file.is_file():
                return k == len(parts) or bool(
                    re.search(rf"\b{parts[k]}\b", file.read_text("utf-8"))
                )
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_that_commands_are_given_exist(page: Path) -> None:
    """Of `lmppl COMMAND` and of `python FILE`, in blocks and in prose."""
    from lmppl.cli import cli

    text = page.read_text("utf-8").replace("\\\n", " ")
    wrong = []
    for command, rest in re.findall(r"\blmppl (\w+)((?: [^\n`]*)?)", text):
        if command in cli.commands:
            known = {o for p in cli.commands[command].params for o in (*p.opts, *p.secondary_opts)}
            wrong += [(command, o) for o in options_in(rest) if o not in known]
    for file, rest in re.findall(rf"python {FILE}([^\n`]*)", text):
        words = set(re.findall(r"[\w-]+", (ROOT / file).read_text("utf-8")))
        wrong += [(file, o) for o in options_in(rest) if not {o, o[2:].replace("-", "_")} & words]
    assert wrong == []


def options_in(line: str) -> list[str]:
    return re.findall(r"(?<!\S)(--[a-z][a-z0-9-]*)", line)


def test_these_tests_see_what_is_wrong() -> None:
    assert is_there(["lmppl", "lm", "load"]) and is_there(["lmppl", "inference", "SMC"])
    assert not is_there(["lmppl", "inference", "smc", "SCM"]) and not is_there(["lmpl"])
    assert dotted("see `lmppl.lm.load`, not x.lmppl.y") == {"lmppl.lm.load"}
    assert options_in(" a.py --data x --out=y -h a--b") == ["--data", "--out"]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_doc_facts.py --write")
    sys.path[0] = str(ROOT)  # tests/ holds a folder of the same name
    API.write_text(page(), "utf-8")
    print(f"wrote {API.relative_to(ROOT)}")
