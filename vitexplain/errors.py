"""What a user did wrong, as opposed to what we did."""

import sys
from collections.abc import Callable


class RequestError(ValueError):
    """A request that can't be met; the message is one sentence that says why and what to do.

    Every error that a user can cause is one. Any other exception is a bug of ours, and ends in a
    traceback.
    """


def one_line(error: object, limit: int | None = None) -> str:
    """An error's message without line breaks, shortened if it is longer than `limit`."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if limit is None or len(text) <= limit else text[:limit] + "…"


def run_command(name: str, function: Callable[[], object]) -> int:
    """Run a command's work; its exit code: 0, or 2 with "NAME: what is wrong" on stderr."""
    try:
        function()
    except (RequestError, OSError) as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
