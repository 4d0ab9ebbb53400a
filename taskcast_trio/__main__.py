"""``python -m taskcast_trio`` is ``taskcast-trio``."""

from __future__ import annotations

from taskcast_trio.cli import main

main(prog_name="taskcast-trio")
