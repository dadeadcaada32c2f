"""C7: no quota is ever over-admitted; and what becomes of quotas when processes or stores go."""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count, cycle, islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from duostore.v1 import data_access_pb2, data_access_pb2_grpc
from duostore_server.domain.quotas import AlgorithmName, Quota
from tests.support.admissions import violations
from tests.support.crowd import Crowd, failure_of
from tests.support.dynamodb_trouble import Trouble
from tests.support.gate import Gate
from tests.support.quota_callers import QuotaCallers, Subject
from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer, running
from tests.support.service import CALL_SECONDS, CHANNEL_OPTIONS, Service, kill
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import psutil

    from duostore.v1.data_access_pb2 import QuotaResponse

SECONDS: Final = 60.0
MUTANT_SECONDS: Final = 8.0
THREADS: Final = 8
KILLS: Final = 6
LOST_ANSWERS: Final = 0.04
THROTTLED: Final = 0.04
LOST_BY_SERVICE: Final = 0.003
# The service takes DynamoDB for down after 0.8 s; a busy machine is late.
OUTAGE_SECONDS: Final = 8.0
# For what has no bound of its own.
RECOVERY_SECONDS: Final = 30.0

# Limits that a crowd passes several times over. A bucket gives its subject SLOW a token in
# 0.5 s, so that time alone would tell of one too many.
SLOW: Final = "slow"
CROWDED: Final = tuple(
    Quota(
        name=f"{algorithm.value}{'_leased' if leased else ''}",
        limit=40,
        window=timedelta(seconds=6 if algorithm is AlgorithmName.TOKEN_BUCKET else 4),
        algorithm=algorithm,
        sub_windows=4,
        lease=8 if leased else 0,
        lease_time=timedelta(milliseconds=200),
        # Those of a bucket may be released only once it has filled up.
        reservation_ttl=timedelta(seconds=6 if algorithm is AlgorithmName.TOKEN_BUCKET else 1),
        release_expired=leased,
        overrides={SLOW: 12},
    )
    for algorithm in AlgorithmName
    for leased in (False, True)
)
SUBJECTS: Final = ("quick", SLOW)

# One that is never used up and never begins anew: what is left of it tells what was debited.
LEDGER: Final = Quota(
    name="ledger",
    limit=10**9,
    window=timedelta(days=30),
    lease=0,
    lease_time=timedelta(seconds=1),
    reservation_ttl=timedelta(minutes=10),
)

# A configuration has at least one.
A_KIND: Final = "[kinds.any]"
CALM_QUOTAS: Final = f"""
{A_KIND}
[quotas.plain]
limit = 20
window = "30d"
lease = 0
[quotas.leased]
limit = 20
window = "30d"
lease = 5
[quotas.budget]
limit = 100_000
window = "30d"
lease = 1_000
lease_time = "10s"
[quotas.lenient]
limit = 5
window = "30d"
lease = 0
on_outage = "allow"
"""


def table_of(quota: Quota, *, too_many: int = 0) -> str:
    """Return the table of the configuration that says what a quota is, or allows too many."""
    sub_windows = f"sub_windows = {quota.sub_windows}"
    overrides = [f"{name} = {limit + too_many}" for name, limit in quota.overrides.items()]
    return "\n".join(
        [
            f"[quotas.{quota.name}]",
            f"limit = {quota.limit + too_many}",
            f'window = "{quota.window // timedelta(seconds=1)}s"',
            f'algorithm = "{quota.algorithm.value}"',
            sub_windows if quota.algorithm is AlgorithmName.SLIDING_WINDOW else "",
            f"lease = {quota.lease}",
            f'lease_time = "{quota.lease_time // timedelta(milliseconds=1)}ms"',
            f'reservation_ttl = "{quota.reservation_ttl // timedelta(seconds=1)}s"',
            f'expired_reservations = "{"released" if quota.release_expired else "used"}"',
            f"[quotas.{quota.name}.overrides]",
            *overrides,
        ]
    )


def limit_of(quota: Quota, subject: str) -> int:
    return quota.overrides.get(subject, quota.limit)


@dataclass(frozen=True)
class Faulty:
    """A service that loses answers, over a DynamoDB that loses and refuses writes."""

    service: Service
    before_service: Gate
    before_dynamodb: Gate
    trouble: Trouble

    def channels(self) -> Callable[[], grpc.Channel]:
        """Return what opens channels: in turn straight to the service, and through its gate."""
        targets = cycle((self.service.target, f"127.0.0.1:{self.before_service.port}"))
        return lambda: grpc.insecure_channel(next(targets), options=CHANNEL_OPTIONS)


@pytest.fixture
def faulty(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path: Path,
) -> Iterator[Faulty]:
    chance = random.Random(THREADS)
    trouble = Trouble(chance)

    def loses_answer(_asked: bytes, _answered: bytes) -> bool:
        return chance.random() < LOST_BY_SERVICE

    with (
        before(dynamodb, trouble) as gate,
        Service(
            tmp_path,
            dsn=postgres.create_database(),
            endpoint_url=f"http://127.0.0.1:{gate.port}",
            prefix=f"t{secrets.token_hex(4)}_",
            node=memcached.address,
            kinds="\n".join((A_KIND, *map(table_of, (*CROWDED, LEDGER)))),
        ) as service,
        Gate(service.port, loses=loses_answer) as before_service,
    ):
        yield Faulty(service, before_service, gate, trouble)


@dataclass(frozen=True)
class Calm:
    """A service of two workers, over a DynamoDB that nobody else uses."""

    service: Service
    dynamodb: DynamoDBLocal
    gate: Gate
    trouble: Trouble


@pytest.fixture(scope="module")
def calm(
    postgres: PostgresServer,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Calm]:
    """Leave its DynamoDB running, its gate open and the service up."""
    trouble = Trouble(random.Random())
    with ExitStack() as stack:
        data = tmp_path_factory.mktemp("dynamodb")
        dynamodb = stack.enter_context(running(DynamoDBLocal(data_dir=data)))
        gate = stack.enter_context(before(dynamodb, trouble))
        service = stack.enter_context(
            Service(
                tmp_path_factory.mktemp("calm"),
                dsn=postgres.create_database(),
                endpoint_url=f"http://127.0.0.1:{gate.port}",
                prefix="calm_",
                node=memcached.address,
                kinds=CALM_QUOTAS,
            )
        )
        yield Calm(service, dynamodb, gate, trouble)


@pytest.fixture
def subject() -> str:
    return secrets.token_hex(8)


@contextmanager
def before(dynamodb: DynamoDBLocal, trouble: Trouble) -> Iterator[Gate]:
    """Put a gate before a DynamoDB, where trouble may arise."""
    port = urlsplit(dynamodb.endpoint_url).port
    assert port is not None
    with Gate(port, loses=trouble.loses, answers=trouble.answers) as gate:
        yield gate


class Everywhere:
    """Asks a service over so many connections that each of its workers has some."""

    def __init__(self, stubs: Sequence[data_access_pb2_grpc.DataAccessStub]) -> None:
        self._stubs = stubs

    def ask(self, times: int, quota: str, subject: str, **options: Any) -> list[QuotaResponse]:
        """Return the answers to so many calls, of which each worker gets some."""
        request = data_access_pb2.QuotaRequest(quota=quota, subject=subject, **options)
        stubs = islice(cycle(self._stubs), times)
        asked = [stub.Quota.future(request, timeout=CALL_SECONDS) for stub in stubs]
        return [call.result() for call in asked]

    def peek(self, quota: str, subject: str) -> list[QuotaResponse]:
        """Return what is told over each of the connections."""
        return self.ask(len(self._stubs), quota, subject, mode=data_access_pb2.MODE_PEEK)


@contextmanager
def everywhere(service: Service) -> Iterator[Everywhere]:
    with ExitStack() as stack:
        channels = [stack.enter_context(service.channel()) for _ in range(16)]
        yield Everywhere([data_access_pb2_grpc.DataAccessStub(channel) for channel in channels])


def until(end: float) -> Iterator[int]:
    """Yield numbers until a moment of the monotonic clock."""
    for number in count():
        if time.monotonic() >= end:
            return
        yield number


def crowd_at(
    channels: Callable[[], grpc.Channel],
    callers: QuotaCallers,
    seconds: float,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    work = until(time.monotonic() + seconds)
    Crowd[int](channels, threads=THREADS).work_off(work, callers.use, meanwhile=meanwhile)


def crowded_subjects() -> list[Subject]:
    return [Subject(quota.name, name) for quota in CROWDED for name in SUBJECTS]


@pytest.mark.timeout(300)
def test_through_a_minute_of_kills_and_lost_and_throttled_writes_nothing_is_over_admitted(
    faulty: Faulty, record_property: Callable[[str, object], None]
) -> None:
    service, trouble = faulty.service, faulty.trouble
    callers = QuotaCallers([*crowded_subjects(), Subject(LEDGER.name, "all")], once=LEDGER.name)
    killed: list[psutil.Process] = []
    began = time.monotonic()

    def kill_now_and_then() -> None:
        for number in range(1, KILLS + 1):
            due = began + SECONDS * number / (KILLS + 1)
            eventually(
                lambda due=due: time.monotonic() >= due,  # type: ignore[misc]
                within=SECONDS,
                what="it is time to kill",
            )
            victim = eventually(service.serving, within=30, what="a serving process")[0]
            kill(victim)
            killed.append(victim)

    trouble.lost_share, trouble.throttled_share = LOST_ANSWERS, THROTTLED
    crowd_at(faulty.channels(), callers, SECONDS, meanwhile=kill_now_and_then)
    trouble.lost_share = trouble.throttled_share = 0.0

    leased = {
        quota.name: service.metric(
            "duostore_quota_leased_units_total", quota=quota.name, fate="admitted"
        )
        for quota in CROWDED
    }
    record_property("answers", {name: dict(counts) for name, counts in callers.counts.items()})
    record_property("unanswered calls", dict(callers.persistence.unanswered))
    record_property("admitted from leases", leased)
    record_property("answers lost by DynamoDB", faulty.before_dynamodb.lost_answers)
    record_property("answers lost by the service", faulty.before_service.lost_answers)
    record_property("requests to DynamoDB", dict(trouble.sent))
    record_property("throttled writes", trouble.throttled)

    for quota in CROWDED:
        for name in SUBJECTS:
            history = callers.admissions[Subject(quota.name, name)]
            limit = limit_of(quota, name)
            assert not violations(quota, limit, history), (quota.name, name)
            # Else there was little to see. Faults cost units, so that it is not all of them.
            assert violations(quota, limit * 3 // 4, history), (quota.name, name)
        # Else nobody was limited.
        assert callers.counts[quota.name]["denied"] > 100, quota.name
    with service.channel() as channel:
        request = data_access_pb2.QuotaRequest(
            quota=LEDGER.name, subject="all", mode=data_access_pb2.MODE_PEEK
        )
        left = data_access_pb2_grpc.DataAccessStub(channel).Quota(request, timeout=CALL_SECONDS)
    # What was sent until it was answered was debited, and settled, once.
    assert LEDGER.limit - left.remaining == callers.used_once

    # Else it was not tried.
    answers = sum(callers.counts.values(), Counter[str]())
    assert sum(map(len, callers.admissions.values())) > 1_500
    assert answers["denied"] > 1_500
    for what in (
        "consumed",
        "consumed once",
        "repeated",
        "reserved",
        "settled: less",
        "settled: more",
        "settled: release",
        "settled twice",
    ):
        assert answers[what] > 20, what
    assert {name: units > 0 for name, units in leased.items()} == {
        quota.name: bool(quota.lease) for quota in CROWDED
    }
    assert len(killed) == KILLS
    assert faulty.before_dynamodb.lost_answers > 50
    assert trouble.throttled > 50
    assert faulty.before_service.lost_answers > 10


def test_a_service_that_admits_one_too_many_is_caught_by_the_same_check(
    postgres: PostgresServer, dynamodb: DynamoDBLocal, memcached: MemcachedServer, tmp_path: Path
) -> None:
    callers = QuotaCallers(crowded_subjects())
    with Service(
        tmp_path,
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"t{secrets.token_hex(4)}_",
        node=memcached.address,
        kinds="\n".join((A_KIND, *(table_of(quota, too_many=1) for quota in CROWDED))),
    ) as service:
        crowd_at(service.channel, callers, MUTANT_SECONDS)
    caught = {
        quota.name: any(
            violations(quota, limit_of(quota, name), callers.admissions[Subject(quota.name, name)])
            for name in SUBJECTS
        )
        for quota in CROWDED
    }
    assert caught == {quota.name: True for quota in CROWDED}
    # It keeps the limit that it was given.
    for quota in CROWDED:
        for name in SUBJECTS:
            history = callers.admissions[Subject(quota.name, name)]
            assert not violations(quota, limit_of(quota, name) + 1, history)


BUDGET: Final = 100_000


def use_and_hold(callers: Everywhere, subject: str) -> tuple[int, int]:
    """Use units until workers hold some more; return how many were used, and are held."""
    [before] = {answer.remaining for answer in callers.peek("budget", subject)}
    answers = callers.ask(400, "budget", subject)
    while True:
        assert all(answer.allowed for answer in answers)
        left = min(answer.remaining for answer in callers.peek("budget", subject))
        if before - left > len(answers):
            return len(answers), before - left - len(answers)
        answers += callers.ask(1, "budget", subject)


def test_what_workers_hold_is_given_back_on_sigterm_and_lost_with_a_crash(
    calm: Calm, subject: str
) -> None:
    service = calm.service
    with everywhere(service) as callers:
        used, _ = use_and_hold(callers, subject)
    assert service.stop() == 0
    service.start()
    with everywhere(service) as callers:
        assert {answer.remaining for answer in callers.peek("budget", subject)} == {BUDGET - used}
        further, held = use_and_hold(callers, subject)
        for worker in service.workers():
            kill(worker)
    eventually(lambda: len(service.serving()) == 2, within=RECOVERY_SECONDS, what="both are back")
    with everywhere(service) as callers:
        [left] = {answer.remaining for answer in callers.peek("budget", subject)}
    assert 0 < BUDGET - used - further - left <= held


@pytest.mark.parametrize("how", ["stopped", "swallowing"])
def test_without_dynamodb_a_quota_denies_or_allows_as_it_is_configured_to(
    calm: Calm, subject: str, how: str, record_property: Callable[[str, object], None]
) -> None:
    service, calls = calm.service, 8
    before = {outcome: _decided(service, *outcome) for outcome in _OUTAGE}
    with service.channel() as channel:
        stub = data_access_pb2_grpc.DataAccessStub(channel)

        def ask(quota: str) -> QuotaResponse:
            request = data_access_pb2.QuotaRequest(quota=quota, subject=subject)
            return stub.Quota(request, timeout=OUTAGE_SECONDS)

        assert ask("lenient").remaining == 4
        calm.dynamodb.stop() if how == "stopped" else calm.gate.close()
        try:
            took = []
            for _ in range(calls):
                began = time.monotonic()
                with pytest.raises(grpc.RpcError) as refused:
                    ask("plain")
                took.append(time.monotonic() - began)
                # Not past the deadline: the service had not to be left.
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                assert _retry_seconds(refused.value) > 0
            record_property("seconds until refused", took)
            for _ in range(calls):
                answer = ask("lenient")
                assert (answer.allowed, answer.unchecked, answer.limit) == (True, True, 5)
                assert not answer.HasField("reset_time")
        finally:
            calm.dynamodb.start() if how == "stopped" else calm.gate.open()
        made = {outcome: _decided(service, *outcome) - before[outcome] for outcome in _OUTAGE}
        assert made == dict.fromkeys(_OUTAGE, calls)

        def is_checked() -> bool:
            try:
                return not ask("lenient").unchecked and ask("plain").allowed
            except grpc.RpcError as error:
                if failure_of(error).is_passing:
                    return False
                raise

        eventually(is_checked, within=RECOVERY_SECONDS, what="DynamoDB is asked again")


_OUTAGE: Final = (("plain", "unavailable"), ("lenient", "unchecked"))


def _decided(service: Service, quota: str, outcome: str) -> float:
    return service.metric("duostore_quota_decisions_total", quota=quota, outcome=outcome)


def _retry_seconds(error: Any) -> float:
    """Return after how long one is told to try again, 0 if one is not."""
    status = rpc_status.from_call(error)
    for packed in status.details if status is not None else ():
        info = error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    return 0.0


def test_a_limit_that_is_set_is_in_force_in_every_worker_within_two_seconds(
    calm: Calm, subject: str, record_property: Callable[[str, object], None]
) -> None:
    """A loaded machine may be late: one of three changes has to be in time."""
    took = []
    with everywhere(calm.service) as callers:
        for limit, *command in (
            (3, "limit", "set", "plain", subject, "3"),
            (7, "limit", "set", "plain", subject, "7"),
            (20, "limit", "unset", "plain", subject),
        ):
            calm.service.run(*command)
            began = time.monotonic()
            eventually(
                lambda limit=limit: (  # type: ignore[misc]
                    {answer.limit for answer in callers.peek("plain", subject)} == {limit}
                ),
                within=RECOVERY_SECONDS,
                what=f"the limit is {limit}",
            )
            took.append(time.monotonic() - began)
            if limit == 3:
                allowed = callers.ask(32, "plain", subject)
                assert sum(answer.allowed for answer in allowed) == 3
    record_property("seconds until in force", took)
    assert min(took) <= 2.0


@pytest.mark.parametrize("quota", ["plain", "leased"])
def test_what_is_denied_writes_nothing_to_dynamodb(calm: Calm, subject: str, quota: str) -> None:
    denied = 1_000
    with everywhere(calm.service) as callers:
        admitted = 0
        # Until every worker knows that nothing is left, and nothing can come back.
        while answers := [one for one in callers.ask(64, quota, subject) if one.allowed]:
            admitted += len(answers)
        assert admitted == 20
        callers.ask(64, quota, subject)
        writes, before = calm.trouble.writes, _decided(calm.service, quota, "denied")
        assert writes > 0
        for answer in callers.ask(denied, quota, subject):
            assert (answer.allowed, answer.limit, answer.remaining) == (False, 20, 0)
            assert answer.HasField("retry_after")
        assert calm.trouble.writes == writes
        assert _decided(calm.service, quota, "denied") - before == denied
