"""Every key has one name per place, derived from the types; names that came first still work."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskcast_trio.config import load_config
from taskcast_trio.config.keys import ENV_ALIASES, KEYS
from taskcast_trio.config.show import rows

EXISTING_ENV = """
TASKCAST_AUTH_MODE=jwt TASKCAST_JWT_ALGORITHM=HS512 TASKCAST_JWT_SECRET=x
TASKCAST_JWT_PUBLIC_KEY=x TASKCAST_JWT_PUBLIC_KEY_FILE=x TASKCAST_JWT_ISSUER=x
TASKCAST_JWT_AUDIENCE=x TASKCAST_STORAGE=sqlite TASKCAST_REDIS_URL=redis://x
TASKCAST_POSTGRES_URL=postgres://x TASKCAST_POSTGRES_MAX_CONNECTIONS=3 TASKCAST_LOG_LEVEL=warn
TASKCAST_AUTO_MIGRATE=true TASKCAST_REDIS_PREFIX=x TASKCAST_HOT_RETENTION_ENABLED=true
TASKCAST_HOT_RETENTION_TERMINAL_SECONDS=5 TASKCAST_HOT_RETENTION_IDLE_SECONDS=5
TASKCAST_REHYDRATE_REPLAY_EVENTS=5 TASKCAST_STORAGE_LOCK_TTL_SECONDS=5
TASKCAST_TTL_SWEEP_INTERVAL_SECONDS=5 TASKCAST_TTL_SWEEP_BATCH_SIZE=5 TASKCAST_PORT=5
TASKCAST_WORKERS_ENABLED=1 TASKCAST_SQLITE_PATH=x
"""


def test_existing_environment_names_are_all_known(tmp_path: Path) -> None:
    env = dict(pair.split("=") for pair in EXISTING_ENV.split())
    loaded = load_config(path=None, flags={}, env=env, cwd=tmp_path, home=tmp_path)
    assert not [line for line in loaded.warnings if "not known" in line]
    assert {source.rpartition(" ")[2] for source in loaded.sources.values()} == set(env)


@pytest.mark.parametrize(
    ("path", "env", "flag"),
    [
        ("port", "TASKCAST_PORT", "--port"),
        ("dbPath", "TASKCAST_DB_PATH", "--db-path"),
        (
            "auth.jwt.publicKeyFile",
            "TASKCAST_AUTH_JWT_PUBLIC_KEY_FILE",
            "--auth-jwt-public-key-file",
        ),
        ("redis.url", "TASKCAST_REDIS_URL", "--redis-url"),
        ("server.http2", "TASKCAST_SERVER_HTTP2", "--server-http2"),
    ],
)
def test_names_derive_from_the_key(path: str, env: str, flag: str) -> None:
    assert (KEYS[path].env, KEYS[path].flag) == (env, flag)


def test_no_two_keys_share_a_name() -> None:
    keys = KEYS.values()
    assert len({key.env for key in keys}) == len({key.flag for key in keys}) == len(KEYS)
    assert not {key.env for key in keys} & set(ENV_ALIASES)


def test_every_default_as_shown_can_be_given_back_as_a_variable(tmp_path: Path) -> None:
    default = load_config(path=None, flags={}, env={}, cwd=tmp_path, home=tmp_path)
    env = {KEYS[path].env: text for path, text, _ in rows(default) if path != "host"}
    again = load_config(path=None, flags={}, env=env, cwd=tmp_path, home=tmp_path)
    assert again.config == default.config
    assert set(again.sources) == {path for path, _, _ in rows(default)} - {"host"}
    assert len(env) > 40
