"""What cannot be had is refused before anything starts, in one line."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from taskcast_trio.config import Auth, Config, ConfigError, require_available
from taskcast_trio.config.available import AUTH_MODES


@pytest.mark.parametrize("mode", ["none", "jwt", "custom"])
def test_every_mode_of_authentication_is_enforced_and_may_start(mode: Any) -> None:
    require_available(Config(auth=Auth(mode=mode)))


def test_every_mode_that_can_be_configured_is_there() -> None:
    assert set(get_args(get_type_hints(Auth)["mode"])) == AUTH_MODES


@pytest.mark.parametrize(
    ("config", "line"),
    [
        # Code may put together what no file can say.
        ({"auth": Auth(mode="oidc")}, 'auth.mode "oidc" is not available in this version'),  # type: ignore[arg-type]
    ],
)
def test_what_is_not_there_is_refused_in_one_line(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_available(Config(**config))
    assert str(caught.value) == line
