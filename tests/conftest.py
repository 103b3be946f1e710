"""Strict mode, and what every test may ask for.

There is one conftest: mypy names a file in a folder without `__init__.py` by its stem, so a second
one would be a duplicate. Helpers that several test files share are handed out as fixtures, since
test files do not import each other.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Read when numpy, torch and JAX are first imported, so before anything else here.
for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parent.parent

# The same examples on every run and machine; a slow machine is not a failure.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("house")


@pytest.fixture
def key() -> int:
    """A fixed 64-bit key."""
    return 0x1DEA_5EED_0BAD_F00D


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def load_file(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ModuleType]:
    """Import a file by its path under a name of its own, for the length of one test."""

    def load(path: Path) -> ModuleType:
        name = f"_loaded_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up there
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def small(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """The tiny random models of `test_torch_lm.py`."""
    return load_file(ROOT / "tests" / "lmppl" / "test_torch_lm.py")


@pytest.fixture
def paged(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    """The random schedules of `test_torch_paged.py`."""
    return load_file(ROOT / "tests" / "lmppl" / "test_torch_paged.py")


def helper(name: str) -> ModuleType:
    """A module of `tests/`, loaded once; test files get it as a fixture."""
    own = f"lmppl_tests_{name}"
    if own not in sys.modules:
        spec = importlib.util.spec_from_file_location(own, ROOT / "tests" / f"{name}.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"tests/{name}.py")
        sys.modules[own] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[own]


@pytest.fixture(scope="session")
def programs() -> ModuleType:
    """`tests/programs.py`: small programs, each with its measure worked out by hand."""
    return helper("programs")


@pytest.fixture(scope="session")
def http_stub() -> ModuleType:
    """`tests/http_stub.py`: a server of a `TableLM` that answers as vLLM and others do."""
    return helper("http_stub")


@pytest.fixture(scope="session")
def http_faults() -> ModuleType:
    """`tests/http_faults.py`: what goes wrong with an answer of such a server, by name."""
    return helper("http_faults")


@pytest.fixture(scope="session")
def reports() -> ModuleType:
    """`tests/reports.py`: a program, its page read back, hostile text in every field."""
    return helper("reports")


@pytest.fixture
def float64() -> Iterator[None]:
    """JAX in double precision, compiled quickly rather than well."""
    jax = pytest.importorskip("jax")
    old = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", old)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, by `tests/browser.py`; without one its tests are skipped."""
    driver = helper("browser")
    if driver.chromium() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with driver.Browser() as found:
        yield found


@pytest.fixture(scope="session")
def async_programs() -> ModuleType:
    """The same programs as `async def`."""
    found: ModuleType = helper("asyncify").asyncify(
        ROOT / "tests" / "programs.py", "async_programs"
    )
    return found


@pytest.fixture(scope="session")
def mutants() -> ModuleType:
    """`tests/laws/mutants.py`: engines with one mistake each."""
    return helper("laws/mutants")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` writes the messages of `tests/golden/` anew."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The arguments `case` and `mutant` stand for every program and every mistaken engine."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", helper("programs").CASES, ids=repr)
    if "mutant" in metafunc.fixturenames:
        metafunc.parametrize("mutant", helper("laws/mutants").MUTANTS, ids=repr)


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Any]:
    """The embedded language model, loaded once; for tests marked `model`.

    Weights that cannot be had are a failure, not a skip: leave these tests out by
    `-m "not model"`. An environment without torch has no such model.
    """
    pytest.importorskip("torch")
    from lmppl.lm.load import load

    yield load("smollm2")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests recorded by `record_property("figure", text)`."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for report in reports:
        for name, value in report.user_properties:
            if name == "figure" and report.when == "call":
                terminalreporter.write_line(f"figure: {value}")


def pytest_unconfigure() -> None:
    """A process that does not end is a failure, and says where it hangs; it once cost a CI run."""
    faulthandler.dump_traceback_later(120, exit=True)
