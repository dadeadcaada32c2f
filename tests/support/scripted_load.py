"""A load without a network or a clock: a service, an inbox and a time that a test controls."""

from __future__ import annotations

import io
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from duostore_server.cli.load_lines import read_lines
from duostore_server.cli.load_loop import Loader
from duostore_server.cli.load_outcome import Ending, Limits, Outcome, Saved

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.cli.load_inbox import Answer
    from duostore_server.cli.load_journal import Journal
    from duostore_server.cli.load_outcome import End


class Time:
    """Seconds, which pass when somebody waits for an answer."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Call:
    """A Save of a line that was sent; ``tell`` takes its outcome."""

    line: int
    id: str
    document: Any
    sent: float
    tell: Callable[[Outcome], None]


class Service:
    """Collects calls; ``answer`` says what becomes of one, once somebody waits for it.

    ``answer`` returns None to leave the call open for now. ``log`` is what was sent, in order.
    """

    def __init__(self, time: Time, answer: Callable[[Call], Outcome | None]) -> None:
        self._time = time
        self._answer = answer
        self.open: list[Call] = []
        self.log: list[Any] = []

    def save(
        self,
        line: int,
        id: str,  # noqa: A002 - as the port's
        document: Any,
        tell: Callable[[Outcome], None],
    ) -> None:
        self.open.append(Call(line, id, document, self._time(), tell))
        self.log.append(document)

    def work(self) -> None:
        """Answer each open call, or leave it open."""
        for call in list(self.open):
            outcome = self._answer(call)
            if outcome is not None:
                self.open.remove(call)
                call.tell(outcome)


class WaitingInbox:
    """Lets the service work when it is empty, and time pass when that does not help."""

    def __init__(self, time: Time, work: Callable[[], None]) -> None:
        self._time = time
        self._work = work
        self._answers: deque[Answer | None] = deque()

    def put(self, answer: Answer | None) -> None:
        self._answers.append(answer)

    def take(self, timeout: float) -> Answer | None:
        if not self._answers:
            self._work()
        if self._answers:
            return self._answers.popleft()
        self._time.now += timeout
        return None


@dataclass(slots=True)
class Said:
    """A display that remembers what was said."""

    texts: list[str] = field(default_factory=list)

    def show(self, journal: Journal) -> None:
        pass

    def say(self, text: str) -> None:
        self.texts.append(text)


def always_saved(_: Call) -> Outcome:
    return Saved(pending=False)


@dataclass(slots=True)
class Run:
    """All that takes part in one run of a load."""

    loader: Loader
    service: Service
    display: Said
    time: Time
    inbox: WaitingInbox


def run_of(
    content: bytes,
    journal: Journal,
    answer: Callable[[Call], Outcome | None] = always_saved,
    *,
    in_flight: int = 4,
    timeout: float = 10.0,
    retry_for: float = 60.0,
    loader: type[Loader] = Loader,
    time: Time | None = None,
) -> Run:
    """Return a run that is ready to begin; ids stand in the field ``id``."""
    time = time or Time()
    service = Service(time, answer)
    inbox = WaitingInbox(time, service.work)
    display = Said()
    lines = read_lines(
        io.BytesIO(content), after=journal.line, offset=journal.offset, end=len(content)
    )
    return Run(
        loader(
            lines=lines,
            id_path="id",
            journal=journal,
            saver=service,
            inbox=inbox,
            display=display,
            limits=Limits(in_flight=in_flight, timeout=timeout, retry_for=retry_for),
            clock=time,
            jitter=lambda: 1.0,
        ),
        service,
        display,
        time,
        inbox,
    )


def finish(run: Run, journal: Journal) -> End:
    """Run to the end, and complete the journal as the command does."""
    end = run.loader.run()
    if end.ending is Ending.COMPLETE:
        journal.complete()
    return end
