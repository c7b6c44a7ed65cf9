"""Tests of the built binary from outside: real sockets, real certificates, a mock model that keeps its own book.

    tests/outside/run [pytest's arguments]      PORTCULLIS names the binary (target/release/portcullis)
"""

import pytest
from stage import Stage


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
