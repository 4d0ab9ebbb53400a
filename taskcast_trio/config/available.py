"""What this version can do of what the configuration can say."""

from __future__ import annotations

from typing import Final

from taskcast_trio.config.errors import ConfigError
from taskcast_trio.config.schema import Config

AUTH_MODES: Final = frozenset({"none", "jwt", "custom"})


def require_available(config: Config) -> None:
    """Refuse a configuration that asks for more than there is.

    A mode of authentication that is not enforced must not start: its owner believes it is.

    Raises:
        ConfigError: the first thing that is not available.
    """
    if config.auth.mode not in AUTH_MODES:
        raise ConfigError(f'auth.mode "{config.auth.mode}" is not available in this version')
