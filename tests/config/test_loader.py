"""The loader's promises: precedence, names, and one clear line per mistake that holds no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskcast_trio.config import Config, ConfigError, Loaded, load_config

PLANTED = "hush-planted-secret"


class Place:
    """An empty working directory and home, and a short way to load from them."""

    def __init__(self, root: Path) -> None:
        self.cwd, self.home = root / "cwd", root / "home"
        (self.home / ".taskcast").mkdir(parents=True)
        self.cwd.mkdir()

    def write(self, text: str, name: str = "taskcast.config.yaml") -> Path:
        path = self.cwd / name
        path.write_text(text, encoding="utf-8")
        return path

    def load(
        self,
        file: str | None = None,
        env: dict[str, str] | None = None,
        flags: dict[str, object] | None = None,
        path: Path | None = None,
    ) -> Loaded:
        if file is not None:
            self.write(file)
        return load_config(
            path=path, flags=flags or {}, env=env or {}, cwd=self.cwd, home=self.home
        )

    def refusal(self, *args: Any, **kwargs: Any) -> str:
        """Load what must be refused; return the line without the directory in it."""
        with pytest.raises(ConfigError) as caught:
            self.load(*args, **kwargs)
        line = str(caught.value)
        assert line.isprintable()
        return line.replace(f"{self.cwd}/", "")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_nothing_given_is_the_default(place: Place) -> None:
    loaded = place.load()
    assert loaded == Loaded(Config(), {}, (), None)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "auth:\nserver:\n"])
def test_an_empty_file_is_the_default(place: Place, text: str) -> None:
    loaded = place.load(text)
    assert loaded.config == Config()
    assert loaded.file == place.cwd / "taskcast.config.yaml"


@pytest.mark.parametrize(
    ("file", "env", "flag", "wanted", "source"),
    [
        (None, None, None, 3721, None),
        (4001, None, None, 4001, "taskcast.config.yaml"),
        (None, "4002", None, 4002, "TASKCAST_PORT"),
        (None, None, "4003", 4003, "--port"),
        (4001, "4002", None, 4002, "TASKCAST_PORT"),
        (4001, None, "4003", 4003, "--port"),
        (None, "4002", "4003", 4003, "--port"),
        (4001, "4002", "4003", 4003, "--port"),
        (4001, "", None, 4001, "taskcast.config.yaml"),
    ],
)
def test_flag_before_environment_before_file_before_default(
    place: Place,
    file: int | None,
    env: str | None,
    flag: str | None,
    wanted: int,
    source: str | None,
) -> None:
    loaded = place.load(
        None if file is None else f"port: {file}",
        {} if env is None else {"TASKCAST_PORT": env},
        {"port": flag},
    )
    assert loaded.config.port == wanted
    assert loaded.sources.get("port", "default").endswith(source or "default")


def test_an_overridden_value_of_the_file_is_checked_all_the_same(place: Place) -> None:
    assert place.refusal("port: no", {"TASKCAST_PORT": "1"}).startswith(
        "taskcast.config.yaml: port"
    )


def test_sections_merge_key_by_key(place: Place) -> None:
    config = place.load(
        "sse: {retryMs: 1, keepaliveSeconds: 2}", {"TASKCAST_SSE_RETRY_MS": "5"}
    ).config
    assert (config.sse.retry_ms, config.sse.keepalive_seconds) == (5, 2.0)
    assert config.sse.global_keepalive_seconds == 30.0


def test_files_are_looked_for_here_then_at_home(place: Place) -> None:
    home = place.home / ".taskcast"
    (home / "taskcast.config.json").write_text('{"port": 1}')
    assert place.load().config.port == 1
    (home / "taskcast.config.yaml").write_text("port: 2")
    assert place.load().config.port == 2
    place.write('{"port": 3}', "taskcast.config.json")
    assert place.load().config.port == 3
    place.write("port: 4", "taskcast.config.yml")
    assert place.load().config.port == 4
    place.write("port: 5")
    assert place.load().config.port == 5
    other = place.write("port: 6", "other.yaml")
    assert place.load(path=other).config.port == 6
    assert place.load(path=Path("other.yaml")).file == other


def test_a_program_as_configuration_is_not_read_and_said_so(place: Place) -> None:
    program = place.write("export default {}", "taskcast.config.ts")
    assert place.load().warnings == ("taskcast.config.ts is not read: write it as YAML or JSON",)
    assert "programs are not read" in place.refusal(path=program)


def test_a_json_file_means_what_the_yaml_file_means(place: Place) -> None:
    tree = {"port": 1, "auth": {"mode": "jwt", "jwt": {"secret": "s" * 32}}, "cors": {}}
    yaml_config = place.load(json.dumps(tree)).config
    path = place.write(json.dumps(tree), "x.json")
    assert place.load(path=path).config == yaml_config


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("port: x", "port: expected a whole number from 0 to 65535"),
        ("port: 70000", "port: expected a whole number from 0 to 65535"),
        ("port: 1.5", "port: expected a whole number from 0 to 65535"),
        ("port: true", "port: expected a whole number from 0 to 65535"),
        ("adminApi: 1", "adminApi: expected true or false"),
        ("prt: 1", 'prt: unknown key (did you mean "port"?)'),
        ("zzzzz: 1", "zzzzz: unknown key"),
        ("auth: {moed: x}", 'auth.moed: unknown key (did you mean "auth.mode"?)'),
        ("auth: 1", "auth: expected a mapping of keys"),
        (f"auth: {{mode: {PLANTED}}}", "auth.mode: expected one of none, jwt, custom"),
        ("auth: {mode: no}", "auth.mode: expected one of none, jwt, custom"),
        ("adminToken: 1234", "adminToken: expected text"),
        ("adminToken: ''", "adminToken: must not be empty"),
        ("trustedServices: 1", "trustedServices: expected a list of mappings"),
        (
            f"trustedServices: [{{name: a, key: {PLANTED}, scop: 1}}]",
            'trustedServices[0].scop: unknown key (did you mean "trustedServices[0].scope"?)',
        ),
        ("trustedServices: [{name: a}]", "trustedServices[0].key: is missing"),
        ("trustedServices: [{name: a, key: ''}]", "trustedServices[0].key: must not be empty"),
        ("trustedServices: [{name: a, key: 7}]", "trustedServices[0].key: expected text"),
        (
            "trustedServices: [{name: a, key: b}, {name: c, key: b}]",
            "trustedServices: two services have one key",
        ),
        (
            "trustedServices: [{name: a, key: b}, {name: a, key: c}]",
            "trustedServices: two services have one name",
        ),
        (
            'trustedServices: [{name: a, key: "b "}]',
            "trustedServices: a key that no header can carry: visible ASCII is needed",
        ),
        *(
            (
                f"cors: {{origins: ['{origin}']}}",
                'cors.origins: expected "*" or origins like https://app.example, without a path',
            )
            for origin in ("https://app.example/", "app.example", "https://a b", "")
        ),
        ('cors: {headers: ["a\\r\\nb"]}', "cors.headers: expected names of header fields"),
        ("cors: {origins: a}", "cors.origins: expected a list of texts"),
        (
            "cors: {origins: ['*'], credentials: true}",
            'cors.credentials: cannot be with origin "*" (Fetch standard, section 3.3.5)',
        ),
        (
            "server: {graceSeconds: 0}",
            "server.graceSeconds: expected a number above 0 and up to 31536000",
        ),
        (
            "server: {graceSeconds: .nan}",
            "server.graceSeconds: expected a number above 0 and up to 31536000",
        ),
        (
            f"limits: {{bodyBytes: {'9' * 400}}}",
            "limits.bodyBytes: expected a whole number from 1 to 1000000000",
        ),
        (
            "server: {http2: true}",
            "server.http2: needs TLS: server.certFile and server.keyFile",
        ),
        ("server: {certFile: a}", "server.certFile: needs server.keyFile"),
        ("server: {keyFile: a}", "server.keyFile: needs server.certFile"),
        ("1: 2", "top: a key is no text"),
        ("- a", "expected a mapping of keys at the top"),
        ("port: 1\nport: 2", "line 2, column 1: port: the key is there twice"),
        ("port: [", "line 1, column 8: expected the node content, but found '<stream end>'"),
        (f"x: *{PLANTED}", "line 1, column 4: found undefined alias (hidden)"),
        ("port: ${NOT_SET}", "port: environment variable NOT_SET is not set"),
        (
            "trustedServices: [{name: a, key: '${NOT_SET}'}]",
            "trustedServices[0].key: environment variable NOT_SET is not set",
        ),
        ("x: &x [*x]", "nested too deep"),
        ("[" * 5000, "nested too deep"),
        ("a: '\x00'", "not YAML: it holds characters that YAML does not allow"),
        ("x" * 1_100_000, "larger than 1048576 bytes"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_key_and_reason(
    place: Place, text: str, line: str
) -> None:
    said = place.refusal(text)
    assert said == f"taskcast.config.yaml: {line}"
    assert PLANTED not in said


def test_aliases_of_aliases_do_not_take_the_machine(place: Place) -> None:
    levels = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for letter, before in zip("bcdefgh", "abcdefg", strict=True):
        levels.append(f"{letter}: &{letter} [{', '.join([f'*{before}'] * 10)}]")
    assert "more than 100000 values" in place.refusal("\n".join(levels))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"port": }', "line 1, column 10: not JSON: Expecting value"),
        ('{"port": 1, "port": 2}', "port: the key is there twice"),
        ('{"sse": {"retryMs": NaN}}', "NaN and Infinity are no JSON"),
        ("[" * 100_000, "nested too deep"),
        ("\ufeff[]", "expected a mapping of keys at the top"),
    ],
)
def test_a_mistake_in_json_is_one_line(place: Place, text: str, line: str) -> None:
    path = place.write(text, "c.json")
    assert place.refusal(path=path) == f"c.json: {line}"


def test_a_file_that_cannot_be_read_is_one_line(place: Place) -> None:
    assert place.refusal(path=Path("gone.yaml")) == "gone.yaml: there is no such file"
    assert "cannot be read" in place.refusal(path=place.cwd)
    (place.cwd / "latin.yaml").write_bytes(b"host: caf\xe9")
    assert place.refusal(path=Path("latin.yaml")) == "latin.yaml: not UTF-8 at byte 9"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("TASKCAST_PORT", PLANTED, "port: expected a whole number from 0 to 65535"),
        ("TASKCAST_ADMIN_API", PLANTED, "adminApi: expected true or false"),
        ("TASKCAST_TRUSTED_SERVICES", PLANTED, "trustedServices: expected JSON"),
        ("TASKCAST_STORAGE", PLANTED, "storage: expected one of memory, redis, sqlite"),
        (
            "TASKCAST_SSE_KEEPALIVE_SECONDS",
            "nan",
            "sse.keepaliveSeconds: expected a number above 0 and up to 31536000",
        ),
    ],
)
def test_a_mistake_in_the_environment_names_variable_and_key(
    place: Place, name: str, value: str, line: str
) -> None:
    assert place.refusal(env={name: value}) == f"environment variable {name}: {line}"


def test_a_mistake_in_a_flag_names_the_flag(place: Place) -> None:
    said = place.refusal(flags={"sse.retryMs": "soon"})
    assert said == "--sse-retry-ms: sse.retryMs: expected a whole number from 1 to 31536000000"


def test_unknown_and_empty_variables_are_warnings(place: Place) -> None:
    loaded = place.load(
        'host: "${TASKCAST_MY_OWN}"',
        {
            "TASKCAST_PROT": "1",
            "TASKCAST_HOST": "",
            "TASKCAST_MY_OWN": "taskcast",
            "TASKCAST_URL": "http://x",
            "TASKCAST_TOKEN": "x",
            "TASKCAST_TEST_ANYTHING": "x",
            "OTHER": "x",
        },
    )
    assert loaded.warnings == (
        "environment variable TASKCAST_HOST is empty and counts as not set",
        "environment variable TASKCAST_PROT is not known (did you mean TASKCAST_PORT?)",
    )


def test_variables_in_texts_are_replaced_and_parsed_by_the_type_of_the_key(place: Place) -> None:
    file = """
    port: ${PORT}
    adminApi: ${ON}
    cors: {origins: "${ORIGINS}"}
    auth: {jwt: {secret: "${A}-${B}", issuer: "$${A} ${EMPTY}$A"}}
    trustedServices: [{name: n, key: "${A}"}]
    """
    env = {
        "PORT": "4000",
        "ON": "yes",
        "ORIGINS": "http://a, http://b",
        "A": "x",
        "B": "${A}",
        "EMPTY": "",
    }
    config = place.load(file, env).config
    assert (config.port, config.admin_api, config.cors.origins) == (
        4000,
        True,
        ("http://a", "http://b"),
    )
    assert config.auth.jwt.secret is not None
    assert config.auth.jwt.secret.reveal() == "x-${A}"  # what a variable holds is not read again
    assert config.auth.jwt.issuer == "${A} $A"
    assert config.trusted_services[0].key.reveal() == "x"


def test_keys_of_other_servers_load_and_warn(place: Place) -> None:
    loaded = place.load(f"sentry: {{dsn: {PLANTED}}}\nstorageLifecycle: {{ttlSweepBatchSize: 3}}")
    assert [line.replace(f"{place.cwd}/", "") for line in loaded.warnings] == [
        "taskcast.config.yaml: sentry has no effect",
        "taskcast.config.yaml: storageLifecycle.ttlSweepBatchSize has no effect in this version",
    ]


def test_where_webhooks_may_go_is_checked_at_the_start(place: Place) -> None:
    loaded = place.load(
        "webhook: {allow: [10.0.0.0/8, '*.internal'], deny: [hooks.internal], allowPrivate: false}"
    )
    assert loaded.warnings == ()
    assert loaded.config.webhook.allow == ("10.0.0.0/8", "*.internal")
    with pytest.raises(ConfigError, match=r"webhook\.deny: neither a network nor a host: 10\.0\.0"):
        place.load("webhook: {deny: [10.0.0]}")
    for key in ("timeoutMs: 60001", "retries: 101", "maxDelayMs: -1"):
        with pytest.raises(ConfigError, match=r"webhook\.defaultRetry"):
            place.load(f"webhook: {{defaultRetry: {{{key}}}}}")


def test_older_names_of_stores_are_folded_into_the_newer_ones(place: Place) -> None:
    config = place.load(
        """
        adapters:
          broadcast: {provider: redis, url: "redis://a"}
          shortTermStore: {provider: redis, url: "redis://b"}
          longTermStore: {provider: postgres, url: "postgres://c"}
        """
    ).config
    assert config.storage == "redis"
    assert config.redis.url is not None
    assert config.redis.url.reveal() == "redis://b"
    assert config.postgres.url is not None
    assert config.postgres.url.reveal() == "postgres://c"


def test_a_redis_url_alone_selects_redis(place: Place) -> None:
    env = {"TASKCAST_REDIS_URL": "redis://a"}
    assert place.load("storage: sqlite", env).config.storage == "redis"
    assert place.load("", {**env, "TASKCAST_STORAGE": "memory"}).config.storage == "memory"
    assert place.load("", env, {"storage": "memory"}).config.storage == "memory"


def test_a_broadcast_that_is_not_that_of_the_storage_warns(place: Place) -> None:
    loaded = place.load("adapters: {broadcast: {provider: redis}}\nstorage: memory")
    assert len(loaded.warnings) == 1
    assert "adapters.broadcast.provider has no effect" in loaded.warnings[0]


@pytest.mark.parametrize(
    ("file", "host"),
    [
        ("", "127.0.0.1"),
        ("auth: {mode: custom}", "0.0.0.0"),
        ("auth: {mode: jwt}", "0.0.0.0"),
        # A service key is not asked for in mode none: the server is as open as without any.
        ("trustedServices: [{name: a, key: b}]", "127.0.0.1"),
        ("host: 10.0.0.1", "10.0.0.1"),
    ],
)
def test_it_listens_to_this_machine_only_while_no_token_is_asked_for(
    place: Place, file: str, host: str
) -> None:
    assert place.load(file).config.listen_host == host


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("storage: redis", "storage: redis needs its URL"),
        ("processes: 2", 'processes: needs storage redis: "memory" is of one process'),
        ("{processes: 2, storage: sqlite}", '"sqlite" is of one process'),
        ("requireDurable: true", 'requireDurable: storage "memory" keeps nothing'),
    ],
)
def test_what_does_not_go_with_the_storage_is_refused_in_one_line(
    place: Place, file: str, line: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        place.load(file)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("adminToken: x", "adminToken has no effect without adminApi"),
        ("{adminApi: true, adminToken: x}", "adminToken has less than 16 characters"),
        (
            "trustedServices: [{name: a, key: b}]",
            "trustedServices: a key of less than 16 characters: a",
        ),
        ("auth: {jwt: {secret: x}}", 'auth.jwt has no effect: auth.mode is "none"'),
        ("auth: {mode: custom}", "auth.custom names no callable: everybody is refused"),
    ],
)
def test_what_is_probably_a_mistake_is_a_warning(place: Place, file: str, advice: str) -> None:
    assert place.load(file).warnings == (advice,)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("{target: hush, trigger: {}}", "cleanup.rules[1].target: Invalid enum value"),
        ("{target: all}", "cleanup.rules[1]: Object missing required field `trigger`"),
        ("{target: all, trigger: {}, macth: {}}", "contains unknown field `macth`"),
        ("{target: all, trigger: {afterMs: 1.5}}", "cleanup.rules[1].trigger.afterMs: Expected"),
    ],
)
def test_a_wrong_cleanup_rule_is_refused_with_its_place(
    place: Place, rule: str, reason: str
) -> None:
    good = "{target: events, trigger: {afterMs: 1000}}"
    with pytest.raises(ConfigError) as caught:
        place.load(f"cleanup: {{rules: [{good}, {rule}]}}")
    line = str(caught.value)
    assert "taskcast.config.yaml: cleanup.rules[1]" in line
    assert reason in line
    assert "hush" not in line
    assert place.load(f"cleanup: {{rules: [{good}]}}").warnings == ()
