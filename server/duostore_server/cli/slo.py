"""The commands ``duostore slo``: what watches over the objectives from outside."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

import typer

from duostore_server.cli.config_file import DEFAULT_CONFIG, ConfigFile, settings_of

slo_app = typer.Typer(
    no_args_is_help=True, help="Print what watches over the objectives of the service."
)


@slo_app.command("rules")
def _rules(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Print the rules for Prometheus: what it records of the objectives, and all alerts."""
    from duostore_server.config import objectives
    from duostore_server.telemetry.slo_rules import rules

    typer.echo(rules(objectives(settings_of(config, process="slo"))), nl=False)


@slo_app.command("dashboard")
def _dashboard() -> None:
    """Print the dashboard for Grafana, which needs those rules."""
    from duostore_server.telemetry.dashboard import dashboard

    typer.echo(dashboard(), nl=False)
