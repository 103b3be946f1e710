"""What README.md and docs/*.md show is run, in order, with one namespace per page.

A fence says what happens to it:

    ```python                       run; nothing is compared by itself
    ```python skip="why"            not run; the reason is printed after the tests
    ```python needs="smollm2"       the page is marked `model`; any other word: a package
    ```python slow                  the page is marked `slow`
    ```python raises="ValueError"   must raise it; `ValueError: message` is its output
    ```python title="word.py"       run, and saved under this name; so is any fence with a file name
    ```pycon                        a doctest, in the namespace of the page
    ```console run                  lines `$ lmppl …` and `$ python …` are run in the page's folder;
                                    add exit="2" for another exit code

Shown outputs are compared, with `...` for anything and any run of spaces for another:

* a ```text fence right below a block, or an ```output fence anywhere below: what the block printed,
  and the value of a last line that is an expression;
* `# -> shown` behind or below a statement: what it printed, or its value.
"""

from __future__ import annotations
import __future__

import ast
import asyncio
import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("README.md"), *sorted((ROOT / "docs").rglob("*.md"))]
OPTIONS = set("skip needs slow raises exit title run hl_lines linenums".split())
LENIENT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Fence:
    """A fenced block: `line` is that of its first line of content."""

    language: str
    text: str
    line: int
    options: dict[str, str] = field(default_factory=dict)
    adjacent: bool = False  # nothing but blank lines since the fence before

    @property
    def runs(self) -> bool:
        python = self.language in ("python", "py", "pycon")
        return python or (self.language == "console" and "run" in self.options)


def fences(text: str) -> Iterator[Fence]:
    """The fenced blocks of a page."""
    lines = text.splitlines()
    at, adjacent = 0, False
    while at < len(lines):
        opening = re.match(r"\s*(`{3,}|~{3,})\s*([\w+-]*)(.*)$", lines[at])
        at += 1
        if opening is None:
            adjacent = adjacent and not lines[at - 1].strip()
            continue
        start = at
        closing = re.compile(rf"\s*{opening[1]}{opening[1][0]}*\s*$")
        while at < len(lines) and not closing.match(lines[at]):
            at += 1
        if at == len(lines):
            raise ValueError(f"line {start}: this fence is never closed")
        options = {}
        for option in re.findall(r'\w+="[^"]*"|\S+', opening[3]):
            name, _, value = option.partition("=")
            options[name] = value.strip('"')
        content = textwrap.dedent("\n".join(lines[start:at]))
        at += 1
        yield Fence(opening[2], content, start + 1, options, adjacent)
        adjacent = True


def same(shown: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(f"{shown}\n", f"{got}\n", LENIENT)


class Page:
    """A page being run: its namespace, its folder, what its last block put out."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.module = ModuleType("page_" + re.sub(r"\W", "_", name))
        self.flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.skipped: list[str] = []
        self.output: str | None = None

    def run(self, text: str) -> None:
        """Run every block, compare every shown output."""
        with asyncio.Runner() as runner:
            for fence in fences(text):
                self.step(fence, runner)

    def step(self, fence: Fence, runner: asyncio.Runner) -> None:
        if fence.language == "output" or (fence.language == "text" and fence.adjacent):
            if self.output is not None:
                self.compare(fence.text, self.output, fence.line)
            return
        if fence.runs and not set(fence.options) <= OPTIONS:
            unknown = ", ".join(sorted(set(fence.options) - OPTIONS))
            raise AssertionError(f"{self.name}:{fence.line}: unknown in a fence: {unknown}")
        if re.fullmatch(r"[\w./-]+\.\w+", fence.options.get("title", "")):
            file = self.folder / fence.options["title"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(fence.text + "\n")
        if not fence.runs:
            return
        self.output = None
        if "skip" in fence.options:
            reason = fence.options["skip"]
            assert reason, f"{self.name}:{fence.line}: a skipped block says why"
            self.skipped.append(f"{self.name}:{fence.line}: {reason}")
        elif fence.language == "console":
            self.output = self.console(fence)
        elif fence.language == "pycon" or fence.text.startswith(">>> "):
            self.doctest(fence)
        else:
            self.output = self.python(fence, runner)

    def compare(self, shown: str, got: str, line: int) -> None:
        if not same(shown, got):
            raise AssertionError(f"{self.name}:{line}: the page shows\n{shown}\nbut it is\n{got}")

    def python(self, fence: Fence, runner: asyncio.Runner) -> str:
        """Run statement by statement; what was printed, then the value of a last expression."""
        code = "\n" * (fence.line - 1) + fence.text  # so that tracebacks name lines of the page
        tree = ast.parse(code)
        arrows = expected(code, tree)
        output, value = "", None
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                for alias in statement.names:
                    self.flags |= getattr(__future__, alias.name).compiler_flag
            try:
                printed, value = self.statement(statement, runner)
            except Exception as error:
                name = type(error).__name__
                if fence.options.get("raises") == name:
                    return f"{output}{name}: {error}"
                error.add_note(f"in the block at {self.name}:{fence.line}")
                raise
            output += printed
            if statement.lineno in arrows:
                got = printed + ("" if value is None else repr(value))
                self.compare(arrows[statement.lineno], got, statement.lineno)
        if "raises" in fence.options:
            raise AssertionError(
                f"{self.name}:{fence.line}: {fence.options['raises']} was not raised"
            )
        last = tree.body[-1] if tree.body else None
        return output + (repr(value) if isinstance(last, ast.Expr) and value is not None else "")

    def statement(self, node: ast.stmt, runner: asyncio.Runner) -> tuple[str, Any]:
        """Run one; what it printed, and the value of an expression or of a plain assignment."""
        space = self.module.__dict__
        expression = isinstance(node, ast.Expr)
        tree: ast.AST = (
            ast.Expression(node.value)
            if isinstance(node, ast.Expr)
            else ast.Module([node], type_ignores=[])
        )
        mode = "eval" if expression else "exec"
        code = compile(tree, self.name, mode, flags=self.flags, dont_inherit=True)  # type: ignore[call-overload]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = eval(code, space)
            if code.co_flags & 0x80:  # CO_COROUTINE: there was an await
                value = runner.run(value)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = space[node.targets[0].id]
        return printed.getvalue(), value

    def doctest(self, fence: Fence) -> None:
        space = self.module.__dict__
        test = doctest.DocTestParser().get_doctest(
            fence.text, space, self.name, self.name, fence.line - 1
        )
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=LENIENT, verbose=False)
        runner.run(test, out=report.write, clear_globs=False)
        space.update(test.globs)
        assert not runner.failures, f"{self.name}:{fence.line}:\n{report.getvalue()}"

    def console(self, fence: Fence) -> str:
        """Run each command in the page's folder; all output, and it is compared too."""
        text = fence.text.replace("\\\n", " ")
        output = ""
        for command, shown in re.findall(r"^\$ (.*)\n?((?:(?!\$ ).*\n?)*)", text, re.MULTILINE):
            word, *arguments = shlex.split(command)
            modules = {"lmppl": ["-m", "lmppl"], "python": []}
            if word not in modules:
                raise AssertionError(f"{self.name}:{fence.line}: only lmppl and python are run")
            done = subprocess.run(
                [sys.executable, *modules[word], *arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            code = int(fence.options.get("exit", "0"))
            if done.returncode != code:
                raise AssertionError(
                    f"{self.name}:{fence.line}: `{command}` ended with {done.returncode}, "
                    f"not {code}:\n{done.stdout}"
                )
            if shown.strip():
                self.compare(shown, done.stdout, fence.line)
            output += done.stdout
        return output


def expected(code: str, tree: ast.Module) -> dict[int, str]:
    """First line of a statement -> what `# ->` comments behind or below it show."""
    found: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        match = re.match(r"#\s*(?:->|→) ?(.*)", token.string)
        if token.type == tokenize.COMMENT and match:
            line = max((s.lineno for s in tree.body if s.lineno <= token.start[0]), default=0)
            found[line] = "\n".join([*filter(None, [found.get(line)]), match[1]])
    return found


def page_parameters() -> Iterator[Any]:
    for path in PAGES:
        blocks = [fence for fence in fences(path.read_text()) if fence.runs]
        needs = {fence.options["needs"] for fence in blocks if "needs" in fence.options}
        marks = [pytest.mark.model] if "smollm2" in needs else []
        marks += [pytest.mark.slow] if any("slow" in fence.options for fence in blocks) else []
        if blocks:
            name = path.relative_to(ROOT).as_posix()
            yield pytest.param(path, sorted(needs - {"smollm2"}), marks=marks, id=name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a page runs: empty but for the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("path", "needs"), list(page_parameters()))
def test_page(
    path: Path,
    needs: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    for package in needs:
        pytest.importorskip(package)
    page = Page(path.relative_to(ROOT).as_posix(), folder)
    monkeypatch.setitem(sys.modules, page.module.__name__, page.module)
    page.run(path.read_text())
    for reason in page.skipped:
        record_property("figure", f"docs, not run: {reason}")


GOOD = {
    "printed": "```python\nprint(1 + 1)\n```\n\n```text\n2\n```",
    "last value": "```python\n[1, 2]\n```\nthat is\n```output\n[1, 2]\n```",
    "prose between": "```python\nprint(2)\n```\nA tree:\n```text\na\n```",
    "arrows": "```python\nx = 3  # -> 3\nx + 1\n# -> 4\nprint('a', x)  # -> a 3\n```",
    "one namespace": "```python\ny = 5\n```\n```pycon\n>>> y\n5\n```",
    "indented": "=== tab\n\n    ```python\n    if True:\n        z = 1\n    z  # -> 1\n    ```",
    "raises": '```python raises="ValueError"\nint("x")\n```\n```text\nValueError: invalid ...\n```',
    "await": "```python\nimport asyncio\nawait asyncio.sleep(0, 7)  # -> 7\n```",
    "skipped": '```python skip="a reason"\n1 / 0\n```\n```text\nnot compared\n```',
    "a file": '```json title="a.json"\n[1]\n```\n```python\nfrom pathlib import Path\nPath("a.json").read_text()\n```\n'
    "```text\n'[1]\\n'\n```",
    "console": "```console run\n$ python -c 'print(6)'\n6\n$ python -c 'print(7)'\n7\n```",
    "exit": "```console run exit=\"3\"\n$ python -c 'raise SystemExit(3)'\n```",
}
BAD = {
    "printed": "```python\nprint(1 + 1)\n```\n\n```text\n3\n```",
    "last value": "```python\n[1, 2]\n```\nthat is\n```output\n[1, 3]\n```",
    "arrow": "```python\nx = 3  # -> 4\n```",
    "arrow of a string": "```python\n'a'  # -> 'b'\n```",
    "pycon": "```pycon\n>>> 1\n2\n```",
    "raises nothing": '```python raises="ValueError"\n1\n```',
    "no reason": "```python skip\n1\n```",
    "unknown option": '```python skp="x"\n1\n```',
    "console": "```console run\n$ python -c 'print(6)'\n7\n```",
    "console exit": "```console run\n$ python -c 'raise SystemExit(3)'\n```",
    "console word": "```console run\n$ rm x\n```",
}


@pytest.mark.parametrize("text", list(GOOD.values()), ids=list(GOOD))
def test_the_runner_accepts(text: str, folder: Path) -> None:
    Page("page.md", folder).run(text)


@pytest.mark.parametrize("text", list(BAD.values()), ids=list(BAD))
def test_the_runner_rejects(text: str, folder: Path) -> None:
    with pytest.raises(AssertionError, match=r"^page\.md:\d"):
        Page("page.md", folder).run(text)


def test_an_exception_names_its_block(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        Page("page.md", folder).run("text\n\n```python\nx = 0\n1 / x\n```")
    assert caught.value.__notes__ == ["in the block at page.md:4"]
    assert caught.traceback[-1].lineno == 4  # counted from 0: line 5 of the page


def test_every_page_is_in_the_navigation_once() -> None:
    yaml = pytest.importorskip("yaml")

    def leaves(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [
            leaf for n in (node.values() if isinstance(node, dict) else node) for leaf in leaves(n)
        ]

    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in PAGES if p.parent != ROOT]
    assert sorted(listed) == sorted(pages)


def test_the_documentation_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        assert "<p>```" not in page.read_text(), f"{page.name}: a fence was not understood"


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """MkDocs checks the pages in docs/; these are the others."""
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
