"""Language models behind servers: `HTTPLM` and what it is made of.

| files | what they hold |
| --- | --- |
| `model`, `url`, `detect`, `probe` | the model: its address, whose server it is, what its numbers mean |
| `client`, `retry`, `stream`, `status`, `errors` | the wire, and all that goes wrong on it |
| `dialects`, `openai`, `llamacpp`, `sglang` | how each server is spoken to |
| `draw`, `rows`, `score`, `memory`, `vocabulary` | strings, rows and scores; answers that are remembered |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmppl.lm.http.model import HTTPLM as HTTPLM

__all__ = ["HTTPLM"]


def __getattr__(name: str) -> Any:
    # the address alone (`url`) is read wherever a model is loaded, and must not cost a client
    if name == "HTTPLM":
        from lmppl.lm.http.model import HTTPLM

        return HTTPLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
