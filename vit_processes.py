"""How worker processes are started. Imports nothing heavy, so that it can be asked for first."""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

HAS_SERVER = "forkserver" in multiprocessing.get_all_start_methods()


def begin() -> BaseContext:
    """The context to start workers in; torch and timm begin to load for them in the background.

    Never a fork of this process: it runs torch's threads, and perhaps CUDA.
    """
    if not HAS_SERVER:
        return multiprocessing.get_context("spawn")
    # they take seconds to import: once for all workers
    forkserver.set_forkserver_preload(["vit_workers"])
    forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")
