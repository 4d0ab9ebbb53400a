"""The test kit in a project of its user's: with pytest alone, with pytest-trio, with asyncio.

Each test runs pytest in a process of its own, on a project that has nothing but what it says.
"""

from __future__ import annotations

import os

import pytest

ONLY_PYTEST = ("-p", "no:trio", "-p", "no:anyio", "-p", "no:hypothesispytest")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs pytest on the files of the project; warnings are errors there too."""
    for name in [name for name in os.environ if name.startswith(("TASKCAST_", "PYTEST_"))]:
        monkeypatch.delenv(name)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def run(*arguments: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(**files)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=60)

    return run


def test_pytest_starts_without_any_of_it_and_with_its_own_options(run):
    result = run(
        *ONLY_PYTEST,
        conftest="""
            import sys

            def pytest_sessionfinish(session):
                kit = {n for n in sys.modules if n.startswith("taskcast_trio")}
                assert kit == {
                    "taskcast_trio", "taskcast_trio.testing", "taskcast_trio.testing.plugin"
                }
                for name in ("trio", "quart", "httpx", "msgspec", "structlog"):
                    assert name not in sys.modules, name
                print("INERT")
        """,
        test_it="""
            def test_it(pytestconfig):
                assert pytestconfig.getoption("schedule_seeds") == 25
                assert pytestconfig.option.asyncio_mode is None if hasattr(
                    pytestconfig.option, "asyncio_mode") else True
        """,
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*INERT*"])


def test_naming_the_plugin_in_a_conftest_loads_it_once(run):
    result = run(
        conftest='pytest_plugins = ["taskcast_trio.testing.plugin"]',
        test_it="def test_it(webhook_sink): assert webhook_sink.deliveries == []",
    )
    result.assert_outcomes(passed=1)


SYNC = """
    import httpx

    def ask(url, task):
        httpx.post(f"{url}/tasks", json={"id": "t", **task}).raise_for_status()
        httpx.patch(f"{url}/tasks/t/status", json={"status": "running"}).raise_for_status()

    def test_a_server(taskcast_server):
        ask(taskcast_server.url, {})
        stream = ""
        with httpx.stream("GET", f"{taskcast_server.url}/tasks/t/events") as answer:
            for line in answer.iter_lines():
                stream += line + "\\n"
                if "running" in line:
                    httpx.patch(f"{taskcast_server.url}/tasks/t/status",
                        json={"status": "completed"}).raise_for_status()
        assert "event: taskcast.done" in stream

    def test_each_has_its_own(taskcast_server):
        assert httpx.get(f"{taskcast_server.url}/tasks").json()["tasks"] == []

    def test_a_webhook(taskcast_server, webhook_sink):
        ask(taskcast_server.url, {"webhooks": [webhook_sink.webhook()]})
        (delivery,) = webhook_sink.wait(1)
        assert delivery.event["data"]["status"] == "running", delivery.event
"""


def test_sync_tests_with_pytest_alone(run):
    run(*ONLY_PYTEST, test_it=SYNC).assert_outcomes(passed=3)


def test_a_project_says_how_its_server_is_configured(run):
    result = run(
        *ONLY_PYTEST,
        conftest="""
            import pytest
            from taskcast_trio.config import Config, Workers

            @pytest.fixture
            def taskcast_config():
                return Config(workers=Workers(enabled=True))
        """,
        test_it="""
            import httpx

            def test_it(taskcast_server):
                assert httpx.get(f"{taskcast_server.url}/workers").status_code == 200
                assert not taskcast_server.url.endswith(":3721")
        """,
    )
    result.assert_outcomes(passed=1)


def test_asyncio_run_in_a_test(run):
    result = run(
        *ONLY_PYTEST,
        test_it="""
            import asyncio
            import msgspec
            from taskcast_trio.client import AsyncTaskcastClient
            from taskcast_trio.core.model import CreateTask

            def test_it(taskcast_server, webhook_sink):
                async def main():
                    async with AsyncTaskcastClient(taskcast_server.url) as client:
                        webhook = msgspec.Raw(msgspec.json.encode(webhook_sink.webhook()))
                        task = await client.create(CreateTask(webhooks=[webhook]))
                        await client.transition(task.id, "running")
                        (delivery,) = await webhook_sink.arrived()
                        return delivery.event["type"]
                assert asyncio.run(main()) == "taskcast:status"
        """,
    )
    result.assert_outcomes(passed=1)


ENGINE = """
    import pytest
    import trio
    from taskcast_trio.core.model import CreateTask, Transition

    {mark}
    async def test_a_deadline_takes_no_time(taskcast_engine, autojump_clock):
        task = await taskcast_engine.create(CreateTask(ttl=3600))
        await taskcast_engine.transition(task.id, Transition(status="running"))
        async with taskcast_engine.subscribe(task.id) as events:
            items = [item async for item in events]
        assert items[-1].reason == "timeout"
        assert trio.current_time() == pytest.approx(3600, abs=2)
"""


@pytest.mark.parametrize("mode", ["marks", "trio_mode"])
def test_an_engine_with_pytest_trio(run, pytester, mode):
    if mode == "trio_mode":
        pytester.makeini("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    mark = "@pytest.mark.trio" if mode == "marks" else ""
    run(test_it=ENGINE.replace("{mark}", mark)).assert_outcomes(passed=1)


def test_an_engine_with_the_plugin_of_anyio(run):
    result = run(
        "-p",
        "no:trio",
        test_it="""
            import pytest

            @pytest.fixture
            def anyio_backend():
                return "trio"

            @pytest.mark.anyio
            async def test_it(taskcast_engine):
                task = await taskcast_engine.create()
                assert (await taskcast_engine.get(task.id)).status == "pending"
        """,
    )
    result.assert_outcomes(passed=1)


def test_an_engine_that_is_not_on_trio_says_what_it_needs(run):
    """As with pytest-asyncio, which in its auto mode takes every async fixture for itself."""
    result = run(
        "-p",
        "no:trio",
        test_it="""
            import pytest

            @pytest.fixture
            def anyio_backend():
                return "asyncio"

            @pytest.mark.anyio
            async def test_it(taskcast_engine):
                raise AssertionError("it has no engine")
        """,
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*taskcast_engine runs on Trio*"])


CLIENT = """
    import pytest

    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    {mark}
    async def test_it(taskcast_client, webhook_sink):
        task = await taskcast_client.create(type="llm.chat")
        await taskcast_client.transition(task.id, "running")
        await taskcast_client.publish(task.id, "log", {"n": 1})
        await taskcast_client.transition(task.id, "completed")
        async with taskcast_client.subscribe(task.id) as events:
            assert len([event async for event in events]) > 0
        with pytest.raises(TimeoutError, match="0 of 1 deliveries within 0 s"):
            await webhook_sink.arrived(timeout_s=0)
        async with taskcast_client.run(webhooks=[webhook_sink.webhook()]) as run:
            await run.emit("log", {"n": 1})
        _, delivery, _ = await webhook_sink.arrived(3)
        assert delivery.event["data"] == {"n": 1}
"""


@pytest.mark.parametrize(("mark", "without"), [("trio", "anyio"), ("anyio", "trio")])
def test_the_client_of_an_async_test_is_an_async_one(run, mark, without):
    test = CLIENT.replace("{mark}", f"@pytest.mark.{mark}")
    run("-p", f"no:{without}", test_it=test).assert_outcomes(passed=1)


def test_the_client_of_a_sync_test_is_a_sync_one(run):
    result = run(
        *ONLY_PYTEST,
        test_it="""
            def follow(client):
                task = client.create(type="llm.chat")
                client.transition(task.id, "running")
                client.transition(task.id, "completed")
                with client.subscribe(task.id) as events:
                    assert len(list(events)) > 0

            def test_it(taskcast_client):
                follow(taskcast_client)

            class TestIt:
                def test_in_a_class(self, taskcast_client):
                    follow(taskcast_client)
        """,
    )
    result.assert_outcomes(passed=2)


def test_the_seed_of_a_failure_is_named(run):
    result = run(
        "--schedule-seeds",
        "3",
        test_it="""
            import pytest

            @pytest.mark.trio
            async def test_it(schedule_seed, autojump_clock):
                assert schedule_seed != 1
        """,
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["replay: pytest --schedule-seed 1 *"])
