"""Fresh processes: what one contestant leaves behind, hooks, caches or memory, must not reach another."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

PRELOADED = ["torch", "torch._dynamo", "ticketkit.imp"]  # imported once, in the server that children are forked from


def started(job: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start `job(pipe, *arguments)` in a fresh process, one thread, seeded; return it and our end of the pipe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe()
    child = context.Process(target=_work, args=(job, theirs, arguments))
    child.start()
    theirs.close()
    return child, ours


def _work(job: Callable[..., None], pipe: Connection, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    job(pipe, *arguments)
