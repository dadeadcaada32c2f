"""The definition of a query."""

from __future__ import annotations

from pydantic import Field

from duostore_server.config.param_settings import Params
from duostore_server.config.section import Section, duration, setting, size
from duostore_server.config.sql_files import Select
from duostore_server.config.values import Duration, Kinds, Size


class Query(Section):
    """``[queries.NAME]``."""

    sql: Select = setting(
        ...,
        "The file with its SQL: one SELECT, which runs in a read-only transaction. `:name` is a "
        "parameter, and `:tenant` the tenant of the call. Required.",
    )
    params: Params = Field(
        default_factory=dict,
        description="Its parameters, by name in any case, and their types: `string`, `integer`, "
        "`number`, `decimal`, `boolean`, `timestamp`, `date`, `uuid`, and lists of them such as "
        '`"string[]"`. One is required unless it has a default or is optional, and then NULL: '
        '`{ status = "string", since = { type = "date", default = "2020-01-01" }, '
        'owner = { type = "uuid", optional = true } }`.',
    )
    depends_on: Kinds = setting(
        [],
        "Kinds at home in Aurora: when an entity of them changes, what is cached for its tenant "
        "is not used any more.",
    )
    cache_ttl: Duration = duration(
        "5m",
        "How long a result is cached: the last bound on how old it may be. `0s` caches none.",
        "0s",
        "24h",
    )
    max_rows: int = setting(
        1000, "The most rows that Query answers; Export has no such bound.", 1, 100_000
    )
    max_bytes: Size = size(
        "512KiB",
        "The most bytes, as protobuf, of the rows that Query answers; Export has no such bound. "
        "memcached keeps results of up to 1MiB unless it is told otherwise.",
        "1KiB",
        "900KiB",
    )
    timeout: Duration = duration(
        "5s",
        "How long the database may take: for all of a Query, for each portion of an Export.",
        "10ms",
        "10m",
    )
