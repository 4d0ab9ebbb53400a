"""The route that cleans up at once, or tells what would go."""

from __future__ import annotations

from functools import partial

from quart import Response
from quart_trio import QuartTrio

from taskcast_trio.core.errors import BadRequest, Forbidden
from taskcast_trio.engine import Runtime
from taskcast_trio.engine.cleanup_tally import Tally

from . import answers
from .auth.permit import visible
from .openapi_shapes import CleanedByRule, CleanupReport, CleanupRequest
from .requests import Permits, read_body


def register(app: QuartTrio, runtime: Runtime) -> None:
    cleaner, limits = runtime.cleaner, runtime.config.limits
    permits = Permits(runtime.engine)

    @app.post("/tasks/cleanup")
    async def clean_up() -> Response:
        caller = permits.route("cleanUp")
        if caller.task_ids is not None:
            raise Forbidden("Rules are for all tasks, and this caller is limited to some")
        request: CleanupRequest = await read_body(CleanupRequest, limits, empty=b"{}")
        if request.within_ms and not request.dry_run:
            raise BadRequest("It goes with `dryRun` only - at `$.withinMs`")
        tally = Tally(None if caller.open else partial(visible, caller, "cleanUp"))
        if request.dry_run:
            await cleaner.preview(tally, within_ms=request.within_ms)
        else:
            await cleaner.run_due(tally)
        return answers.json(_report(tally, dry_run=request.dry_run))


def _report(tally: Tally, *, dry_run: bool) -> CleanupReport:
    return CleanupReport(
        dry_run=dry_run,
        rules=[
            CleanedByRule(rule=of.label, target=of.target, tasks=of.tasks, events=of.events)
            for of in tally.rules
        ],
        task_ids=tally.tasks,
        more=tally.more,
    )
