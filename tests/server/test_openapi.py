"""The API document and its page tell the truth, and need nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args
from urllib.parse import urljoin

import msgspec
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from taskcast_trio.server import docs, openapi, queries, routes_tasks
from taskcast_trio.server.openapi_examples import EXAMPLES, examples
from taskcast_trio.server.route_parts import Scope
from taskcast_trio.server.route_table import ROUTES, Route, routes

METHODS_OF_THE_CONTRACT = {
    "/tasks": {"get", "post"},
    "/tasks/import": {"post"},
    "/tasks/{}": {"get"},
    "/tasks/{}/status": {"patch"},
    "/tasks/{}/events": {"get", "post"},
    "/tasks/{}/events/history": {"get"},
    "/tasks/{}/archive": {"get"},
    "/tasks/{}/storage/release": {"post"},
    "/events": {"get"},
}
WORKER_METHODS_OF_THE_CONTRACT = {
    "/workers": {"get"},
    "/workers/{}": {"get", "delete"},
    "/workers/{}/status": {"patch"},
    "/workers/pull": {"get"},
    "/workers/tasks/{}/decline": {"post"},
}
SCOPES_OF_THE_CONTRACT = {
    "task:create": {"POST /tasks"},
    "task:manage": {
        "PATCH /tasks/{}/status",
        "POST /tasks/import",
        "POST /tasks/cleanup",
        "POST /tasks/{}/storage/release",
        "DELETE /tasks/{}",
        "POST /tasks/{}/webhooks/{}/redeliver",
    },
    "task:resolve": {"POST /tasks/{}/resolve", "GET /tasks/{}/request"},
    "event:publish": {
        "POST /tasks/{}/events",
        "GET /tasks/{}/events/ws",
        "GET /tasks/{}/seq/{}",
    },
    "event:subscribe": {
        "GET /tasks",
        "GET /tasks/{}",
        "GET /tasks/{}/events",
        "GET /events",
        "POST /tickets",
        "GET /tasks/{}/webhooks",
        "GET /tasks/{}/webhooks/{}/deliveries",
    },
    "metrics:read": {"GET /metrics"},
    "event:history": {"GET /tasks/{}/events/history", "GET /tasks/{}/archive"},
    "worker:manage": {
        "GET /workers",
        "GET /workers/{}",
        "DELETE /workers/{}",
        "PATCH /workers/{}/status",
    },
    "worker:connect": {
        "GET /workers/pull",
        "GET /workers/ws",
        "POST /workers/register",
        "POST /workers/{}/heartbeat",
        "POST /workers/tasks/{}/decline",
    },
}
ASSETS = ("docs.js", "rapidoc-min.js", "rapidoc-min.js.LICENSE.txt", "rapidoc.LICENSE.txt")


def unnamed(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def document(*, workers: bool = True) -> dict[str, Any]:
    """The document as a client reads it."""
    text = msgspec.json.encode(openapi.document(workers=workers, version="1.2.3"))
    found: dict[str, Any] = json.loads(text)
    return found


def operations(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in found["paths"].items()
        for method, operation in item.items()
    }


def query_names(operation: str) -> set[str]:
    parameters = operations(document())[operation]["parameters"]
    return {parameter["name"] for parameter in parameters if parameter["in"] == "query"}


@pytest.mark.parametrize("workers", [False, True])
def test_document_is_valid_openapi_3_1(workers: bool) -> None:
    found = document(workers=workers)
    assert found["openapi"] == "3.1.0"
    assert found["info"]["version"] == "1.2.3"
    OpenAPIV31SpecValidator(found).validate()


def test_known_paths_have_exactly_the_methods_that_existing_clients_know() -> None:
    listed = {unnamed(path): set(item) for path, item in document()["paths"].items()}
    expected = METHODS_OF_THE_CONTRACT | WORKER_METHODS_OF_THE_CONTRACT
    assert {path: listed.get(path) for path in expected} == expected


def test_worker_routes_are_listed_only_where_workers_are_on() -> None:
    assert not [path for path in document(workers=False)["paths"] if path.startswith("/workers")]
    assert not [route for route in routes(workers=False) if route.path.startswith("/workers")]
    assert "Worker" not in document(workers=False)["components"]["schemas"]


def test_deleting_a_task_is_told_where_people_look_for_it() -> None:
    assert "`DELETE`" in operations(document())["GET /tasks/{task_id}"]["description"]


@pytest.mark.parametrize(
    ("operation", "declared"),
    [
        ("GET /tasks", routes_tasks.LIST_PARAMETERS),
        ("GET /tasks/{task_id}/request", routes_tasks.REQUEST_PARAMETERS),
        ("GET /tasks/{task_id}/events", queries.STREAM_PARAMETERS),
        ("GET /tasks/{task_id}/events/history", queries.HISTORY_PARAMETERS),
        ("GET /events", queries.GLOBAL_PARAMETERS),
    ],
)
def test_documented_query_parameters_are_those_that_the_server_reads(
    operation: str, declared: frozenset[str]
) -> None:
    assert query_names(operation) == declared


def test_no_method_of_a_path_and_no_name_appears_twice() -> None:
    counts = Counter(f"{route.method} {unnamed(route.path)}" for route in ROUTES)
    counts.update(route.name for route in ROUTES)
    assert max(counts.values()) == 1


def test_each_route_wants_the_scope_of_the_contract() -> None:
    wanted: dict[str, set[str]] = {scope: set() for scope in get_args(Scope)}
    for route in ROUTES:
        if route.scope is not None:
            wanted[route.scope].add(f"{route.method} {unnamed(route.path)}")
    assert wanted == SCOPES_OF_THE_CONTRACT


def test_a_token_is_asked_for_everywhere_but_on_routes_of_the_service() -> None:
    found = document()
    assert list(found["components"]["securitySchemes"]) == ["Bearer"]
    protected = ("/tasks", "/events", "/workers", "/tickets", "/metrics")
    for name, operation in operations(found).items():
        is_protected = name.split()[1].startswith(protected)
        assert bool(operation["security"]) is is_protected, name
        assert ({"401", "403"} <= operation["responses"].keys()) is is_protected, name


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_refusal_has_the_one_shape_of_errors(route: Route) -> None:
    if not route.listed:
        return
    operation = operations(document())[f"{route.method} {route.path}"]
    for status in route.errors:
        schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Error"}
    error = document()["components"]["schemas"]["Error"]
    assert error["required"] == ["error"]
    assert error["properties"] == {
        "error": {"type": "string"},
        "code": {"type": "string"},
        "expectedSeq": {"type": "integer", "minimum": 0},
    }


@pytest.mark.parametrize(("shape", "named"), EXAMPLES, ids=lambda value: str(value)[:60])
def test_every_example_decodes_as_what_it_is_an_example_of(
    shape: Any, named: dict[str, Any]
) -> None:
    for value in named.values():
        decoded = msgspec.json.decode(json.dumps(value), type=shape)
        again = json.loads(msgspec.json.encode(decoded))
        # A field that the shape does not know would be dropped; one at its default may be.
        assert again == value or {**value, **again} == value, value


def test_every_body_has_an_example_and_every_example_matches_its_schema() -> None:
    found = document()
    checked = 0
    for name, operation in operations(found).items():
        contents = [answer.get("content", {}) for answer in operation["responses"].values()]
        if "requestBody" in operation:
            contents.append(operation["requestBody"]["content"])
            assert contents[-1]["application/json"]["examples"], name
        for media in (content.get("application/json", {}) for content in contents):
            # The components travel with the schema, so that its references resolve.
            schema = {**media.get("schema", {}), "components": found["components"]}
            for example in media.get("examples", {}).values():
                OAS31Validator(schema).validate(example["value"])
                checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ("CreateTask", {"ttl": 1.5}),
        ("CreateTask", {"ttl": 0}),
        ("CreateTask", {"id": ""}),
        ("CreateTask", {"params": []}),
        ("CreateTask", {"assignMode": "push"}),
        ("CreateTask", {"type": None}),
        ("Transition", {}),
        ("Transition", {"status": "done"}),
        ("Transition", {"status": "failed", "error": {}}),
        ("Draft", {"type": "log"}),
        ("StorageRelease", {"expectedLastEventIndex": -2, "inactiveSince": 0}),
    ],
)
def test_schemas_refuse_what_the_server_refuses(shape: str, body: dict[str, Any]) -> None:
    components = document()["components"]
    schema = {"$ref": f"#/components/schemas/{shape}", "components": components}
    assert not OAS31Validator(schema).is_valid(body)


def test_every_enumeration_says_its_type() -> None:
    def enumerations(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            if isinstance(node.get("enum"), list):
                yield node
            for child in node.values():
                yield from enumerations(child)
        elif isinstance(node, list):
            for child in node:
                yield from enumerations(child)

    found = list(enumerations(document()))
    assert found
    for schema in found:
        assert schema.get("type") in ("string", "integer"), schema
        assert all(OAS31Validator({"type": schema["type"]}).is_valid(v) for v in schema["enum"])


@pytest.mark.parametrize("value", [None, 1, "text", [], {}])
def test_data_may_be_any_json(value: object) -> None:
    schema = {"$ref": "#/components/schemas/Draft", "components": document()["components"]}
    OAS31Validator(schema).validate({"type": "log", "level": "info", "data": value})


def test_example_of_a_stream_holds_an_envelope_of_the_documented_shape() -> None:
    found = document()
    stream = operations(found)["GET /tasks/{task_id}/events"]["responses"]["200"]
    text = stream["content"]["text/event-stream"]["example"]
    data = next(line[6:] for line in text.splitlines() if line.startswith("data: "))
    schema = {"$ref": "#/components/schemas/Envelope", "components": found["components"]}
    OAS31Validator(schema).validate(json.loads(data))


def test_document_is_made_once_for_equal_arguments() -> None:
    once = openapi.document(workers=True, version="1.2.3")
    assert openapi.document(workers=True, version="1.2.3") is once
    assert openapi.document(workers=False, version="1.2.3") is not once


def test_a_shape_without_examples_has_none() -> None:
    assert examples(dict[str, Any]) == {}


@pytest.mark.parametrize(("mount", "prefix"), [("", ""), ("/api/v2", ""), ("/api/v2", "/api/v2/")])
def test_page_finds_its_parts_wherever_it_is_mounted(mount: str, prefix: str) -> None:
    html = docs.page(prefix).decode()
    place = f"http://host{mount}/docs"
    sources = [urljoin(place, source) for source in re.findall(r'src="([^"]+)"', html)]
    assert len(sources) == 2
    for source in sources:
        base, _, name = source.rpartition("/")
        assert base == f"{place}/assets"
        assert docs.asset(name) is not None
    (spec,) = re.findall(r'data-spec="([^"]+)"', html)
    assert urljoin(place, spec) == f"http://host{mount}/openapi.json"


def test_page_asks_no_other_server_for_anything() -> None:
    """Page and script name no other host, and the policy keeps the viewer from asking one."""
    html = docs.page().decode()
    script = docs.asset("docs.js")
    assert script is not None
    assert "//" not in re.sub(r"^\s*//.*$", "", script[0].decode(), flags=re.MULTILINE)
    assert "://" not in html
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["connect-src"] == "'self'"
    assert directives["img-src"] == "'self' data:"
    assert "font-src" not in directives
    assert 'load-fonts="false"' in html


def test_a_prefix_cannot_break_out_of_the_page() -> None:
    assert b"<script>alert" not in docs.page('"><script>alert(1)</script>')


@pytest.mark.parametrize("name", ASSETS)
def test_assets_are_shipped_with_their_licences(name: str) -> None:
    found = docs.asset(name)
    assert found is not None
    content, media_type = found
    assert media_type == (
        "text/javascript; charset=utf-8" if name.endswith(".js") else "text/plain; charset=utf-8"
    )
    assert content
    if name == "rapidoc.LICENSE.txt":
        assert content.startswith(b"MIT License")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../docs.py", "..%2Fdocs.py", "docs.html", "docs.js/", "/etc/passwd", "\0"],
)
def test_no_other_file_is_reachable_as_an_asset(name: str) -> None:
    assert docs.asset(name) is None
