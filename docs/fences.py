"""A hook of MkDocs: what a fence says to `tests/test_docs.py` is not shown to the reader.

The Markdown extension takes a fence for plain text when it meets an option that it does not know.
"""

from __future__ import annotations

import re
from typing import Any

FENCE = re.compile(r"^(\s*(?:`{3,}|~{3,})[ ]*\w+)[ ]+(.*)$", re.MULTILINE)
OPTION = re.compile(r'\w+="[^"]*"|\S+')
FOR_TESTS = {"run", "slow", "skip", "needs", "raises", "exit"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Take the words for the tests out of every opening fence."""

    def cleaned(match: re.Match[str]) -> str:
        kept = [o for o in OPTION.findall(match[2]) if o.partition("=")[0] not in FOR_TESTS]
        return " ".join([match[1], *kept])

    return FENCE.sub(cleaned, markdown)
