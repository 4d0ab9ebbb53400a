"""What every test has at hand: seeded schedules, pytest's own tester, and a hypothesis that finds
the same examples each time.
"""

from hypothesis import settings

pytest_plugins = [
    "taskcast_trio.testing.plugin",
    "pytester",
    "tests.storage.postgres.fixtures",
]

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
