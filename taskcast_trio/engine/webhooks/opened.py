"""The webhooks that a configuration asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from taskcast_trio.config import Config
from taskcast_trio.core.addresses import AddressPolicy
from taskcast_trio.core.backoff import Backoff
from taskcast_trio.storage.protocols import Backend

from ..metrics import Metrics
from .attempt import open_sender
from .dial import Dialer
from .lanes import Lanes
from .service import Webhooks


@asynccontextmanager
async def open_webhooks(
    config: Config,
    backend: Backend,
    metrics: Metrics,
    clock: Callable[[], int],
    jitter: Callable[[], float],
    dialer: Dialer | None,
) -> AsyncIterator[Webhooks]:
    """Webhooks whose connections are open as long as the context; to be run within it."""
    settings = config.webhook
    retry = settings.default_retry
    total, per_host = settings.concurrency, settings.per_host
    async with open_sender(
        dialer or Dialer(policy_of(config)),
        concurrency=total,
        per_host=per_host,
        clock=lambda: clock() / 1000,
    ) as sender:
        yield Webhooks(
            backend.store,
            sender,
            Lanes(total, per_host),
            metrics,
            audience=backend.broadcast,
            default_retry=Backoff(
                kind=retry.backoff,
                retries=retry.retries,
                initial_delay_ms=retry.initial_delay_ms,
                max_delay_ms=retry.max_delay_ms,
                timeout_ms=retry.timeout_ms,
            ),
            clock=clock,
            jitter=jitter,
            alone=backend.peers is None,
        )


def policy_of(config: Config) -> AddressPolicy:
    """Where webhooks may go; private networks by default only where anybody may do anything."""
    settings = config.webhook
    private = settings.allow_private
    return AddressPolicy.of(
        allow_private=config.auth.mode == "none" if private is None else private,
        allow=settings.allow,
        deny=settings.deny,
    )
