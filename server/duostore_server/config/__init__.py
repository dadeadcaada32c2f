"""The configuration: one definition, from which everything else about it derives."""

from duostore_server.config.addresses import Address
from duostore_server.config.checks import check_for_serve
from duostore_server.config.kind_policies import policies
from duostore_server.config.loading import load
from duostore_server.config.problems import ConfigError, Problem
from duostore_server.config.query_policies import queries, read_models
from duostore_server.config.quota_policies import quotas
from duostore_server.config.reference import describe, json_schema, render_reference
from duostore_server.config.settings import Settings
from duostore_server.config.slo_objectives import objectives

__all__ = [
    "Address",
    "ConfigError",
    "Problem",
    "Settings",
    "check_for_serve",
    "describe",
    "json_schema",
    "load",
    "objectives",
    "policies",
    "queries",
    "quotas",
    "read_models",
    "render_reference",
]
