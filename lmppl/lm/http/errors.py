"""What can go wrong between this process and a server, each with what to do about it.

Every error names the server, says whether something may have been computed (and paid) there, and
how to go on. A text that is cut off or damaged on its way is never a value: it is one of these.
"""

from __future__ import annotations

from lmppl.errors import LmpplError, Suspended, excerpt


class ServerError(LmpplError):
    """A server that gives no usable answer."""

    retry = False
    """Whether the same request may succeed a moment later."""
    paid = False
    """Whether the server may have done the work nevertheless."""


class ServerUnreachable(ServerError):
    """Nothing was sent: no such host, connection refused, no TLS, no answer to the connection."""

    retry = True


class ServerTimeout(ServerError):
    """The answer was not there, or not complete, before the deadline."""

    retry = True
    paid = True


class ServerBusy(ServerError):
    """429 or 5xx: the server cannot answer now."""

    retry = True
    paid = True
    wait: float | None = None
    """Seconds after which the server wants to be asked again."""


class ResponseCut(ServerError):
    """A response that ends before it is complete."""

    retry = True
    paid = True


class BadResponse(ServerError):
    """A response that is none of the protocol's, or that belongs to another request or model."""

    paid = True


class ResponseTooLarge(BadResponse):
    """A response beyond the size limit; reading stopped there."""


class RequestRefused(ServerError):
    """400, 413, 422: the server does not accept the request."""


class KeyRefused(ServerError):
    """401 or 403: the API key is missing, wrong or not allowed to do this."""


class NotServed(ServerError):
    """404: the server does not have the model, or not this kind of request."""


class Redirected(ServerError):
    """The server sends its clients elsewhere; the API key does not follow."""


class TextFiltered(ServerError):
    """The server cut a text by a filter of its own: what is left has another law."""

    paid = True


class ServerDown(Suspended):
    """So many failures in a row that asking again only costs money."""

    def __init__(self, server: str, failures: int, last: Exception) -> None:
        """Name the last one."""
        what = last.fields["what"] if isinstance(last, LmpplError) else str(last)
        super().__init__(
            f"{failures} requests in a row failed, so no more are sent",
            where=f"server {server}",
            value=excerpt(what, 200),
            why="each further request may be paid for and lost",
            fix="look at the server's log; once it answers again, run the same command with --resume",
        )


def refuse_error(data: object, what: str) -> None:
    """Raise `BadResponse` where an answer says of itself that it is an error."""
    if isinstance(data, dict) and data.get("error"):
        raise BadResponse(what, value=repr(data["error"])[:200], fix="look at the server's log")
