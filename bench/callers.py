"""Callers in this process: threads that call again as soon as they were answered."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from bench.figures import Figures
from tests.support.dynamodb_traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

T = TypeVar("T")


def call_for(
    seconds: float, threads: int, call: Callable[[T], object], work: Iterator[T]
) -> Figures:
    """Call with one piece of ``work`` after the other until the time or the work is used up.

    The threads share the iterator: one over a list, or of ``itertools``, but no generator.
    What a call raises is raised here, once all threads have ended.
    """
    latencies, elapsed = measured(seconds, threads, call, work)
    return Figures.of(latencies, elapsed)


def measured(
    seconds: float, threads: int, call: Callable[[T], object], work: Iterator[T]
) -> tuple[list[float], float]:
    """Do as ``call_for``; return how long each call took, and all of them together."""
    together = threading.Barrier(threads + 1)

    def caller() -> list[float]:
        latencies: list[float] = []
        together.wait()
        ends = time.perf_counter() + seconds
        for piece in work:
            began = time.perf_counter()
            if began >= ends:
                break
            call(piece)
            latencies.append(time.perf_counter() - began)
        return latencies

    with ThreadPoolExecutor(threads, thread_name_prefix="caller") as pool:
        callers = [pool.submit(caller) for _ in range(threads)]
        together.wait()
        began = time.perf_counter()
        latencies = [latency for done in callers for latency in done.result()]
        elapsed = time.perf_counter() - began
    return latencies, elapsed


def of_this_process(
    client: DynamoDBClient,
    threads: int,
    call: Callable[[T], object],
    work: Iterator[T],
    seconds: float,
) -> Figures:
    """Do as ``call_for``, and tell what that took of this process and of DynamoDB."""
    began = time.process_time()
    with Traffic(client).watched() as traffic:
        latencies, elapsed = measured(seconds, threads, call, work)
    spent = time.process_time() - began
    sent = sum(traffic.sent.values())
    calls = len(latencies)
    return replace(Figures.of(latencies, elapsed), cpu=spent / calls, sent=sent / calls)
