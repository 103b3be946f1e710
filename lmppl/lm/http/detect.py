"""Which kind of server answers at an address, and which models it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmppl.errors import LmpplError, ModelNotFound
from lmppl.lm.http.client import Client, Post
from lmppl.lm.http.dialects import Dialect, Served
from lmppl.lm.http.errors import BadResponse, NotServed, RequestRefused
from lmppl.lm.http.llamacpp import LlamaCpp
from lmppl.lm.http.openai import VLLM, OpenAI
from lmppl.lm.http.sglang import SGLang

DIALECTS: dict[str, type[Dialect]] = {
    "vllm": VLLM, "sglang": SGLang, "llamacpp": LlamaCpp, "openai": OpenAI,
}  # fmt: skip


def identify(client: Client, kind: str, model: str) -> tuple[Dialect, Served]:
    """The dialect and the model of a server.

    Args:
        client: to the server.
        kind: what it is, if that is known.
        model: the name of its model; "" takes the only one.

    Raises:
        ModelNotFound: it has no such model, or several and none is named.
        ServerError: it does not answer.
    """
    listed = _models(client)
    names = [str(m["id"]) for m in listed]
    if model and model not in names:
        raise ModelNotFound(
            model,
            looked_for=[f"the models of {client.address.base}: {', '.join(names) or 'none'}"],
            fix=f"write {client.address.base}#{names[0]}" if names else "load a model there",
        )
    if not model and len(names) != 1:
        raise ModelNotFound(
            client.address.base,
            looked_for=[f"the only model of the server: it has {', '.join(names) or 'none'}"],
            fix=f"name one: {client.address.base}#{names[0]}" if names else "load a model there",
        )
    entry = next(m for m in listed if not model or m["id"] == model)
    kind = kind or _kind(client, entry)
    base = next((m for m in listed if m["id"] == entry.get("parent")), entry)  # of an adapter
    context = entry.get("max_model_len") or base.get("max_model_len")
    folder = str(base.get("root") or "")
    if kind == "llamacpp":
        props = _get(client, "/props") or {}
        settings = props.get("default_generation_settings")
        context = settings.get("n_ctx") if isinstance(settings, Mapping) else None
        folder = ""
    if kind == "sglang" and context is None:
        info = _get(client, "/get_model_info") or {}
        folder = str(info.get("model_path") or folder)
        context = (_get(client, "/get_server_info") or {}).get("context_length")
    served = Served(str(entry["id"]), context if isinstance(context, int) else None, folder)
    return DIALECTS[kind](), served


def _models(client: Client) -> list[Mapping[str, Any]]:
    found = client.one(Post("/v1/models", lambda: (None, lambda data: data)))
    listed = found.get("data") if isinstance(found, Mapping) else None
    if not isinstance(listed, list) or not all(
        isinstance(m, Mapping) and "id" in m for m in listed
    ):
        raise BadResponse(
            "the server has no list of models at /v1/models",
            fix="give the address of a vLLM, SGLang, llama.cpp or OpenAI-compatible server",
        )
    return listed


def _kind(client: Client, entry: Mapping[str, Any]) -> str:
    owner = str(entry.get("owned_by", "")).lower()
    if owner == "vllm":
        return "vllm"
    if owner == "sglang":
        return "sglang"
    if owner == "llamacpp" or _get(client, "/props") is not None:
        return "llamacpp"
    return "openai"


def _get(client: Client, path: str) -> Mapping[str, Any] | None:
    """A description that only one kind of server has."""
    try:
        found = client.one(Post(path, lambda: (None, lambda data: data)))
    except (NotServed, RequestRefused, BadResponse):
        return None
    except LmpplError:
        raise
    return found if isinstance(found, Mapping) else None
