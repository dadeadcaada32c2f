"""Flags by way of OpenFeature, so that a company's own provider can say what they are."""

from __future__ import annotations

import uuid
from importlib import import_module
from typing import TYPE_CHECKING, Final

from openfeature import api
from openfeature.provider import AbstractProvider
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openfeature.provider import FeatureProvider

    from duostore_server.domain.controls import Flag, FlagValue

OWN: Final = "duostore"

_SET: Final = "set"


class ProviderError(Exception):
    """The provider of the configuration cannot be had; the text says why."""


class OpenFeatureFlags:
    """Says what flags are: by a provider of the company, or what ``duostore flag set`` set.

    Each instance has a domain of its own in the registry of OpenFeature, which is one for all
    of a process.
    """

    def __init__(self, provider: FeatureProvider | None = None) -> None:
        """``provider`` None: what is set is what the flags are."""
        self._domain = f"{OWN}-{uuid.uuid4().hex}"
        self._client = api.get_client(self._domain)
        self._is_own = provider is None
        self._provider = provider or InMemoryProvider({})
        self._known: Mapping[str, FlagValue] = {}
        api.set_provider_and_wait(self._provider, self._domain)

    @property
    def name(self) -> str:
        """Return who provides the flags: ``duostore``, or the name of another provider."""
        return OWN if self._is_own else self._provider.get_metadata().name

    @property
    def is_own(self) -> bool:
        """Whether what is set is what the flags are."""
        return self._is_own

    def know(self, values: Mapping[str, FlagValue]) -> None:
        """Take note of what is set, which is of no account to another provider."""
        if self._is_own and values != self._known:
            flags = {name: InMemoryFlag(_SET, {_SET: value}) for name, value in values.items()}
            api.set_provider_and_wait(InMemoryProvider(flags), self._domain)
            self._known = values

    def value(self, flag: Flag) -> FlagValue | None:
        """Return what a flag is, its default if nothing is said of it; None if that is unknown."""
        default = flag.default
        details = (
            self._client.get_string_details(flag.name, default)
            if isinstance(default, str)
            else self._client.get_integer_details(flag.name, default)
        )
        if details.error_code is None or details.error_code.value == "FLAG_NOT_FOUND":
            return details.value
        return None


def provider_of(place: str) -> FeatureProvider:
    """Return the provider that ``module:function`` makes. Raises ``ProviderError``."""
    module, _, function = place.partition(":")
    try:
        provider = getattr(import_module(module), function)()
    except Exception as error:
        raise ProviderError(f"flags.provider {place!r} cannot be had: {error!r}") from error
    if not isinstance(provider, AbstractProvider):
        raise ProviderError(
            f"flags.provider {place!r} returned a {type(provider).__name__}, which is no "
            "OpenFeature provider"
        )
    return provider
