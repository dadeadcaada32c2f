"""The actors of a deployment: what callers and background processes do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from duostore_server import codec
from duostore_server.domain.entities import AS_SAVED
from duostore_server.domain.errors import (
    DuplicateInProgressError,
    EntityNotFoundError,
    MinVersionNotReachedError,
    RefusalError,
    StoreError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.transactions import IfAbsent, IfVersion, Origin
from duostore_server.workers.loop import IncompleteRoundError
from tests.interleaving.claims import ViolationError
from tests.interleaving.deployment import AS_EVER, SECOND, Deployment, completer_of, soon
from tests.interleaving.stores import ITEM_MAX, KEY, PROJECTED, STATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.access.reading import Reader
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.transactions import Outcome
    from duostore_server.workers.projector import Projector
    from tests.interleaving.deployment import Flags

_MOST_ROUNDS = 20
_ORIGIN = Origin("", "")


class Stage(Deployment):
    """A deployment with actors on it. Each is a process of its own, unless it says otherwise."""

    def prime(self, key: EntityKey = KEY, *, cached: bool = False, flags: Flags = AS_EVER) -> None:
        """Let there be a version 1 before anything happens, projected, and cached if so wanted."""
        writer = self.make_writer("prime", flags)
        self.write(key, partial(writer.save, key, {"by": "prime"}, None))
        self.make_projector().run_once()
        if cached:
            self.read(self.make_reader(), key)

    def saver(
        self,
        name: str,
        key: EntityKey = KEY,
        *,
        times: int = 1,
        large: bool = False,
        flags: Flags = AS_EVER,
    ) -> None:
        """Add a process that saves an entity and is then asked no more."""

        def work() -> None:
            writer = self.make_writer(name, flags)
            for count in range(times):
                document = {"by": f"{name}{count}", "text": "x" * ITEM_MAX if large else ""}
                self.write(key, partial(writer.save, key, document, None))

        self.world.actor(name, work)

    def deleter(self, name: str, key: EntityKey = KEY) -> None:
        """Add a process that deletes an entity."""

        def work() -> None:
            self.write(key, partial(self.make_writer(name).delete, key, None))

        self.world.actor(name, work)

    def client(self, name: str, key: EntityKey = KEY) -> None:
        """Add a process that saves an entity and reads what it saved, by its version."""

        def work() -> None:
            save = partial(self.make_writer(name).save, key, {"by": name}, None)
            version = self.write(key, save)
            if version is not None:
                self.read(self.make_reader(), key, token=version)

        self.world.actor(name, work)

    def editor(self, name: str, key: EntityKey = KEY) -> None:
        """Add a process that changes what it has read, if nobody has in between."""

        def work() -> None:
            seen = self.read(self.make_reader(), key)
            if seen is None:
                return
            version, live = seen
            condition = IfVersion(version) if live else IfAbsent()
            save = partial(self.make_writer(name).save, key, {"by": name}, condition)
            saved = self.write(key, save)
            if saved is not None and live and saved != version + 1:
                raise ViolationError("C3", f"{saved} replaces {version}")

        self.world.actor(name, work)

    def repeater(
        self,
        name: str,
        key: EntityKey = KEY,
        *,
        times: int = 2,
        precondition: IfVersion | None = None,
    ) -> None:
        """Add a process that sends one idempotent Save, the same as every other repeater.

        It is sent so often, answered or not. With a ``precondition`` that held when the
        others began, no refusal is right: nobody else may write the entity.
        """

        def work() -> None:
            writer = self.make_writer(name)
            once = {"once": "only"}
            save = partial(writer.save, key, once, precondition, idempotency_key=f"only {key}")
            for _ in range(times):
                self.write(key, save, once=once)

        self.world.actor(name, work)

    def reader(
        self,
        name: str,
        key: EntityKey = KEY,
        *,
        times: int = 1,
        tokens: bool = True,
        strong: bool = False,
        flags: Flags = AS_EVER,
    ) -> None:
        """Add a process that reads an entity, from the second time on with a token if so wanted."""

        def work() -> None:
            reader = self.make_reader(flags)
            token = 0
            for _ in range(times):
                seen = self.read(reader, key, token=token, strong=strong)
                if seen is not None and tokens:
                    token, _ = seen

        self.world.actor(name, work)

    def batch_reader(self, name: str) -> None:
        """Add a process that reads all keys of kinds at home in Aurora in one call."""

        def work() -> None:
            promised = dict(self.claims.acknowledged)
            self.world.observe(frozenset(promised.items()))
            try:
                readings = self.make_reader().batch_get(PROJECTED, soon())
            except StoreError as error:
                self.claims.read_failed(error)
                return
            for key, reading in readings.items():
                found = codec.decode(reading.payload) if reading.payload is not None else None
                self.claims.saw(key, reading.version, found, promised=promised.get(key, 0), token=0)

        self.world.actor(name, work)

    def projector(self, name: str, *, rounds: int = 1, flags: Flags = AS_EVER) -> None:
        """Add a background process that looks into the outbox a few times."""

        def work() -> None:
            projector = self.make_projector(flags)
            for _ in range(rounds):
                self._project(projector)

        self.world.actor(name, work)

    def completer(self, of: str) -> None:
        """Add what a process does beside its requests: it removes the outbox rows it noted.

        Before the process has noted anything there is nothing to do, so that in some
        executions the rows are never removed.
        """

        def work() -> None:
            self.world.observe(self.notes(of))
            try:
                self.completer_beside(of).run_once()
            except StoreError:
                return

        self.world.actor(completer_of(of), work)

    def event(self, name: str, *happenings: Callable[[], None]) -> None:
        """Add things that happen by themselves, in this order, at any time."""

        def work() -> None:
            for number, happen in enumerate(happenings):
                if number:
                    self.world.step(name)
                happen()

        self.world.actor(name, work)

    def check_at_rest(self) -> None:
        """Let all faults end and the projector finish; then all tiers have to agree (C6, C8)."""
        self.end_faults()
        self.claims.reads_may_fail = self.claims.writes_may_fail = False
        self.claims.state_may_fail = False
        projector = self.make_projector()
        for _ in range(_MOST_ROUNDS):
            if not self.authority.backlog(soon()).depth:
                break
            self._project(projector)
        else:
            raise ViolationError("C8", "the outbox does not drain")
        self.check_tiers()
        for key in self.claims.written:
            newest = self.claims.newest(key)
            if self.projected(key) != newest:
                raise ViolationError("C8", f"DynamoDB holds {self.projected(key)}, not {newest}")
            if key == STATE:
                # A saver that died may have left an older entry, for the rest of its TTL.
                self.read(self.make_reader(), key)
                self.evict(key)
            cached = self.cached(key)
            if cached is not None and cached.version != newest:
                raise ViolationError("C8", f"the cache holds {cached.version}, not {newest}")
            self.claims.acknowledged[key] = newest
            self.read(self.make_reader(), key)

    def _project(self, projector: Projector) -> None:
        try:
            projector.run_once()
        except (StoreError, IncompleteRoundError):
            return

    def _is_excused(self, key: EntityKey) -> bool:
        return key == STATE and self.claims.state_may_fail

    def write(
        self, key: EntityKey, write: Callable[..., Outcome], *, once: object = None
    ) -> int | None:
        """Save or delete as the calling actor; return the version, or None if refused."""
        try:
            outcome = write(soon(), origin=_ORIGIN)
        except RefusalError as refusal:
            if once is not None:
                raise ViolationError("C2", f"{once} is refused: {refusal}") from refusal
            return None
        except (DuplicateInProgressError, WriteOutcomeUnknownError):
            return None
        except StoreError as error:
            self.claims.write_failed(error, excused=self._is_excused(key))
            return None
        # What it has written to DynamoDB may not have been looked at yet.
        self.check_tiers()
        self.claims.answered(key, outcome, once)
        return outcome.answer[0].version

    def read(
        self, reader: Reader, key: EntityKey, *, token: int = 0, strong: bool = False
    ) -> tuple[int, bool] | None:
        """Return the version that was read and whether it is live, or None if nothing was."""
        promised = self.claims.acknowledged.get(key, 0)
        if strong:
            promised = self.claims.newest(key)
        self.world.observe(promised)
        try:
            reading = reader.get(key, soon(), min_version=token, strong=strong)
        except EntityNotFoundError as error:
            self.claims.saw(key, error.version, None, promised=promised, token=token)
            return error.version, False
        except MinVersionNotReachedError as error:
            raise ViolationError("C4", str(error)) from error
        except StoreError as error:
            self.claims.read_failed(error, excused=self._is_excused(key))
            return None
        assert reading.payload is not None
        found = _as_saved(codec.decode(reading.payload), reader._shapes_of(key)[0])
        self.claims.saw(key, reading.version, found, promised=promised, token=token)
        return reading.version, True


def _as_saved(found: Entity, wanted: int) -> Entity:
    """Return an entity as it was saved, which was read in the shape that its reader wants (C3)."""
    data = found.data or {}
    shape = 2 if SECOND in data else AS_SAVED
    if shape != wanted:
        raise ViolationError("C3", f"{found.key} in shape {shape}, not {wanted}")
    return found if shape == AS_SAVED else replace(found, data=data[SECOND])
