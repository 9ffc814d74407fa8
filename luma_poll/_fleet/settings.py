"""The place of a fleet's database, and a configuration of DBOS that suits a fleet."""

from __future__ import annotations

from typing import Any, cast
from uuid import uuid4

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from luma_poll.errors import ConfigurationError


def fleet_config(
    database_url: str, *, name: str = "luma-poll", schema: str = "dbos", **others: Any
) -> DBOSConfig:
    """Return a configuration for `DBOS(config=...)` that suits a fleet.

    It turns off telemetry, and all log lines but warnings. Results are stored as JSON instead of
    pickles, the number of threads is limited, and connections work through a pooler and notice a
    dead server.

    Args:
        database_url: `postgresql://...`, or `sqlite:///...` to try fleets out on one machine.
        name: The name of the app.
        schema: The schema of the tables, in PostgreSQL.
        others: Further settings of `DBOSConfig`, which override these.
    """
    settings: dict[str, Any] = {
        "name": name,
        "system_database_url": database_url,
        "dbos_system_schema": schema,
        "application_version": name,
        "executor_id": str(uuid4()),
        "serializer": DBOSPortableJSONSerializer(),
        "max_executor_threads": 6,
        "sys_db_pool_size": 5,
        "log_level": "WARNING",
        "enable_otlp": False,
    }
    return cast(DBOSConfig, settings | others)


def database_of_dbos() -> tuple[sa.URL, str | None]:
    """Return the URL of the database of the launched DBOS, and the schema of its tables.

    DBOS has no public name for it, and users give the URL only to DBOS. This is the only place that
    reads a private attribute of DBOS; `Fleet(database=...)` does not need it.

    Raises:
        ConfigurationError: DBOS is not launched, or no longer has such an attribute.
    """
    try:
        from dbos._dbos import _get_dbos_instance

        database = _get_dbos_instance()._sys_db
        return database.engine.url, database.schema
    except Exception as error:
        raise ConfigurationError(
            "the fleet has no database: launch DBOS before you use it, or give the URL as "
            f"Fleet(database=...) ({type(error).__name__})"
        ) from None


def is_in_workflow() -> bool:
    """Return True in the code of a DBOS workflow, but not in that of a step."""
    return DBOS.workflow_id is not None and DBOS.step_id is None
