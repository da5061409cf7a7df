"""A user's mistakes, as opposed to ours, and how commands report them."""

import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress

# what torch's allocators say: CUDA's and MPS's, the CPU's on Linux and macOS, the CPU's on Windows
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory"),
    # of CUDA's libraries, which allocate for themselves, and of MPS
    *("_STATUS_ALLOC_FAILED", "unable to find an engine", "Invalid buffer size"),
    # of the C++ libraries below, and of the operating system
    *("bad_alloc", "bad allocation", "could not create a memory object", "annot allocate memory"),
)
REPORT = (
    "This is an error of the tool, not of your request. Please report the lines above with the "
    "command, what --version says, and the output of pip list."
)
NO_MORE_THREADS = "can't start new thread"
TOO_MANY = (
    "the system allows no more threads or processes: end other programs, or raise the limit "
    "(ulimit -u, pids.max)"
)


class RequestError(ValueError):
    """A request that can't be met; the message is one sentence that says why and what to do.

    Every error that a user can cause is one. Any other exception is a bug of ours, and ends in a
    traceback.
    """


class ModelError(RequestError):
    """The model is unknown or unavailable, or the checkpoint does not fit it."""


class MissingPackage(RequestError, ImportError):
    """A package that only some requests need is not installed; the message says how to get it."""


def printable(text: str) -> str:
    """Text without characters that would move a terminal's cursor or break a line.

    File names may hold any of them, and need not be valid Unicode.
    """
    return "".join(
        c if c.isprintable() or c == " " else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


def one_line(error: object, limit: int | None = None) -> str:
    """An error's message without line breaks, shortened if it is longer than `limit`."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if limit is None or len(text) <= limit else text[:limit] + "…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device. Torch raises RuntimeError with many messages."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported here
        or any(text in str(error) for text in OUT_OF_MEMORY)
    )


def run_command(
    name: str,
    function: Callable[[], int | None],
    *,
    less_memory: str = "try a lower --img_size, or a smaller model",
) -> int:
    """Do a command's work, and put what a user can do something about into one line on stderr.

    Args:
        name: of the command, which begins the line.
        function: the work; returns an exit code, or None for 0.
        less_memory: what to try when memory runs out.

    Returns:
        The exit code: that of `function`; 2 for a request that can't be met; 130 for Ctrl-C; 0
        where whoever read the output has gone, as the work is done by then.
    """
    try:
        return function() or 0
    except KeyboardInterrupt as error:
        return _fail(name, ": ".join(["interrupted", *map(str, error.args)]), 130)
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # a notebook's stream has no number
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return _fail(name, TOO_MANY)
        file = f"{error.filename}: " if error.filename else ""
        return _fail(name, f"{file}{error.strerror or error}")
    except RequestError as error:
        return _fail(name, error)
    except (MemoryError, RuntimeError) as error:
        if NO_MORE_THREADS in str(error):
            return _fail(name, TOO_MANY)
        if not is_out_of_memory(error):
            error.add_note(REPORT)
            raise
        on_gpu = ", or --device cpu" if re.search("CUDA|MPS|HIP", str(error)) else ""
        return _fail(name, f"out of memory: {less_memory}{on_gpu}")
    except Exception as error:
        error.add_note(REPORT)
        raise


def _fail(name: str, reason: object, code: int = 2) -> int:
    print(f"{name}: {one_line(reason)}", file=sys.stderr)
    return code
