"""What the command line names: a program in a file, and language models.

FILE.py  FILE.py:name                     the program
smollm2  table:file.json  judge=a/path    a model, by the name that the program uses
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lmppl.commands.console import say
from lmppl.errors import BadArgument, LmpplError
from lmppl.program import ProgramFunction, check_program

DEFAULT_MODEL = "smollm2"
NO_MODEL = "none"


class ProgramError(LmpplError):
    """A program file that cannot be used."""


@dataclass
class Loaded:
    """A program and what identifies it."""

    program: Any
    name: str
    sha256: str
    """Of its file, and of the files of the same folder that it imports."""
    files: tuple[Path, ...] = ()
    """These files, its own first."""


def load_program(spec: str) -> Loaded:
    """The program of `FILE.py` or `FILE.py:name`.

    Raises:
        ProgramError: the file is missing, cannot be imported, or names no single program.
    """
    path, name = _split(spec)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, _names_in(path.parent), 1)
        raise ProgramError(
            f"{path}: no such file",
            fix=f"did you mean {path.parent / near[0]}?" if near else "give the file of a program",
        )
    module, files = _import(path)
    found = {
        n: v
        for n, v in vars(module).items()
        if isinstance(v, ProgramFunction) and v.__module__ == module.__name__
    }
    if name is None:
        if len(found) != 1:
            listed = ", ".join(f"{path}:{n}" for n in found) or "none"
            raise ProgramError(
                f"{path} has {len(found)} programs ({listed})",
                fix=f"name one, such as {path}:{next(iter(found))}"
                if found
                else "decorate a function with @program, or name a function: FILE.py:name",
            )
        name = next(iter(found))
    elif not hasattr(module, name):
        near = difflib.get_close_matches(name, list(vars(module)), 1)
        raise ProgramError(
            f"{path} has no {name!r}",
            fix=f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(found) or 'none'}",
        )
    program = getattr(module, name)
    check_program(program)
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return Loaded(program, name, digest.hexdigest(), tuple(files))


def _split(spec: str) -> tuple[Path, str | None]:
    head, colon, tail = spec.rpartition(":")
    if colon and tail.isidentifier() and not Path(spec).exists():
        return Path(head), tail
    return Path(spec), None


def _names_in(folder: Path) -> list[str]:
    return [f.name for f in folder.iterdir()] if folder.is_dir() else []


def _import(path: Path) -> tuple[ModuleType, list[Path]]:
    """The module of a file, and all files of its folder that importing it has loaded."""
    name = f"lmppl_program_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ProgramError(f"{path} is no Python file", fix="give a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        file = path if _same(error.filename, path) else error.filename
        raise ProgramError(f"{file}:{error.lineno}:{error.offset}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ProgramError(
            f"{path}{_line_in(error, path)}: importing it raised {type(error).__name__}: {error}"
        ) from error
    folder = path.parent.resolve()
    own = [path.resolve()]
    for other in sorted(set(sys.modules) - before - {name}):
        file = getattr(sys.modules[other], "__file__", None)
        if file and other.partition(".")[0] != "lmppl" and Path(file).resolve().parent == folder:
            own.append(Path(file).resolve())
    return module, own


def _same(name: str | None, path: Path) -> bool:
    return name is not None and Path(name).resolve() == path.resolve()


def _line_in(error: BaseException, path: Path) -> str:
    """The last line of a file that an error went through."""
    at, line = error.__traceback__, ""
    while at is not None:
        if _same(at.tb_frame.f_code.co_filename, path):
            line = f":{at.tb_lineno}"
        at = at.tb_next
    return line


def parse_models(texts: Sequence[str]) -> dict[str, str]:
    """Models by the name a program uses: `smollm2`, `table:file.json`, `judge=path/or/name`."""
    if list(texts) == [NO_MODEL]:
        return {}
    found: dict[str, str] = {}
    for text in texts or (DEFAULT_MODEL,):
        name, equals, source = text.partition("=")
        if not (equals and name.isidentifier() and source) or Path(text).exists():
            name, source = "default", text
        if name in found:
            raise BadArgument(
                f"two language models are called {name!r}: {found[name]} and {source}",
                fix="give the second one a name that the program uses: --lm judge=...",
            )
        found[name] = source
    return found


def load_models(sources: Mapping[str, str]) -> dict[str, Any]:
    """Load each source once."""
    from lmppl.lm.load import load

    known = {source: load(source, progress=say) for source in dict.fromkeys(sources.values())}
    return {name: known[source] for name, source in sources.items()}
