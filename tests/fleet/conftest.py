from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.processes import Postgres, postgres_programs, postgres_server

pytest.importorskip("dbos", reason="DBOS is not installed: pip install luma-poll[dbos]")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fleet.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()
