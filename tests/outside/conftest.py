"""Tests of the built binary from outside: real sockets, real certificates, a mock model that keeps its own book.

    tests/outside/run [pytest's arguments]      PORTCULLIS names the binary (target/release/portcullis)
"""

import pytest
from stage import Stage
from xdist.scheduler import LoadGroupScheduling

# Files whose tests share what is dear, a browser or a gateway that is flooded: one worker each, for all of them.
TOGETHER = ("test_page.py", "test_door_h1.py", "test_door_h2.py")


class Together(LoadGroupScheduling):
    """Instead of the mark `xdist_group`: it is told as a suffix of a test's id, which pytest 9.2 no longer passes on."""

    def _split_scope(self, nodeid):
        file = nodeid.split("::", 1)[0]
        return file if file in TOGETHER else nodeid


def pytest_xdist_make_scheduler(config, log):
    return Together(config, log)


@pytest.fixture
def stage(tmp_path):
    """Makes stages that end with the test: `stage(quota='enforce = "hard"')`."""
    made = []

    def make(**options):
        made.append(Stage(tmp_path / f"stage-{len(made)}", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
        panics = [line for line in (one.gateway.log.splitlines() if one.gateway else []) if "panicked at" in line]
        assert not panics, panics
