"""Traces of calls: off unless the environment asks for them, as OpenTelemetry has it.

What makes them is in ``spans`` and imported only if they are on: its packages are optional.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Self

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from duostore_server.telemetry.spans import ServerSpan, Spans

_OTLP: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_INSTALL: Final = "pip install 'duostore-server[tracing]'"
_CORRECT: Final = "correct the environment, or set OTEL_TRACES_EXPORTER=none"

_log = structlog.get_logger(__name__)


class _Process:
    """What this process makes spans with; None while it makes none."""

    __slots__ = ("spans",)

    def __init__(self) -> None:
        self.spans: Spans | None = None


# Of the process as a whole, like its logs.
process: Final = _Process()


def wanted(environment: Mapping[str, str]) -> bool:
    """Return whether the environment asks for traces: by a collector, or by an exporter."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    return bool(exporters or any(environment.get(name) for name in _OTLP)) and exporters != "none"


@contextmanager
def traced(name: str) -> Iterator[None]:
    """Trace the calls of this process, whose name it is, while the block runs, if that is wanted.

    Enter it before any client of a store is made. At the end what was traced is sent; a
    collector that does not take it is not waited for beyond a few seconds. What is wrong with
    the settings, or missing, is told in the log, and the block runs untraced.
    """
    with ExitStack() as stack:
        if wanted(os.environ):
            _begin(name, stack)
        yield


def _begin(name: str, stack: ExitStack) -> None:
    try:
        # What it imports may not be installed, and takes a while.
        from duostore_server.telemetry import spans  # noqa: PLC0415

        made = spans.made(name, spans.exporters(os.environ))
        stack.enter_context(tracing(stack.enter_context(made)))
    except ImportError as error:
        _log.warning("traces cannot be made", why=str(error), advice=_INSTALL)
    except ValueError as error:
        _log.warning("traces cannot be made", why=str(error), advice=_CORRECT)


@contextmanager
def tracing(spans: Spans) -> Iterator[None]:
    """Make spans of the calls of this process while the block runs."""
    process.spans = spans
    try:
        yield
    finally:
        process.spans = None


class _NoSpan:
    """What takes the place of a server's span while nothing is traced."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def answered(self, code: int) -> None:
        """Note nothing."""


_NO_SPAN: Final = _NoSpan()


def server_span(
    service: str, method: str, metadata: Iterable[tuple[str, str | bytes]]
) -> ServerSpan | _NoSpan:
    """Return the span of a call, to be entered around it: a child of its client's, if any.

    Before it is left, ``answered`` tells the number of the status code.
    """
    spans = process.spans
    return _NO_SPAN if spans is None else spans.server(service, method, metadata)


def trace_ids() -> Mapping[str, str]:
    """Return what a line of the log says of the trace it belongs to; nothing if it does not."""
    spans = process.spans
    return {} if spans is None else spans.ids()
