"""Token healing: a prompt that ends inside a token.

After "http:" a model that has learned the token "://" expects something strange, since the prompt's
last token ":" says that "://" did not come. `healed` takes the last token off the prompt; the string
then begins with its text, by whatever tokens,

    prompt, begun = healed(lm, "The address is http:")      # "The address is http", ":"
    LM(prompt, potential=StartsWith(begun), ...)

so that the target is p(x | shorter prompt) 1(x begins with the text): the model given what was
written, and not given how it was cut. The value of the string includes the beginning.
"""

from __future__ import annotations

from lmppl.errors import BadArgument
from lmppl.lm.base import LanguageModel
from lmppl.token_potentials.texts import BytePotential


class StartsWith(BytePotential):
    """1 for texts that begin with a given one, 0 for others.

    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM(["h", ":", "://", "<eos>"], {(): [0.25] * 4})
    >>> StartsWith(":").start(lm).log_next().tolist()
    [-inf, 0.0, 0.0, -inf]
    """

    def __init__(self, text: str) -> None:
        """Keep its bytes."""
        self.text = text
        self.raw = text.encode()

    def prefix_bytes(self, raw: bytes) -> bool:
        """Whether the two agree as far as both go."""
        return raw.startswith(self.raw) or self.raw.startswith(raw)

    def complete_bytes(self, raw: bytes) -> bool:
        """Whether the text begins so."""
        return raw.startswith(self.raw)

    def __repr__(self) -> str:
        return f"StartsWith({self.text!r})"


def healed(lm: LanguageModel, prompt: str, tokens: int = 1) -> tuple[str, str]:
    """The prompt without its last tokens, and their text.

    Args:
        lm: the model that cuts the prompt.
        prompt: a text that may end inside a token.
        tokens: how many to take off; more where the rest would end inside a character.

    >>> from lmppl.lm.table import TableLM
    >>> healed(TableLM(["h", ":", "://", "<eos>"], {(): [0.25] * 4}), "hh:")
    ('hh', ':')
    """
    ids = lm.encode(prompt)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 < tokens < len(ids):
        raise BadArgument(
            f"a prompt of {len(ids)} tokens cannot give {tokens!r} of them back",
            fix="take off at least one token, and leave at least one",
        )
    for cut in range(len(ids) - tokens, 0, -1):
        try:
            kept = b"".join(map(lm.token_bytes, ids[:cut])).decode()
        except UnicodeDecodeError:
            continue
        if prompt.startswith(kept) and lm.encode(kept) == ids[:cut]:
            return kept, prompt[len(kept) :]
    raise BadArgument(
        "the prompt has no place to be cut", value=prompt[-40:], fix="begin it earlier"
    )
