"""How DBOS has to be configured, so that no work of a fleet is lost or done twice."""

from __future__ import annotations

import re
from typing import Any, cast
from uuid import uuid4

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from luma_poll.errors import ConfigurationError

HISTORY = 1
"""Counts up when a workflow of an earlier release could not be continued by this one."""


def fleet_config(database_url: str, *, name: str = "luma-poll", **others: Any) -> DBOSConfig:
    """A configuration for `DBOS(config=...)` that suits a fleet.

    A pinned version, so that an upgrade continues what the release before it began; a name of its
    own for each process; JSON in place of pickles; few threads and connections.

    Args:
        database_url: `postgresql://...`, or `sqlite:///...` for a try on one machine.
        name: Of the app; the same for all processes of a fleet.
        others: Further settings of `DBOSConfig`, or others than these.
    """
    settings = {
        "name": name,
        "system_database_url": database_url,
        "application_version": f"{name}-{HISTORY}",
        "executor_id": str(uuid4()),
        "serializer": DBOSPortableJSONSerializer(),
        "max_executor_threads": 6,
        "sys_db_pool_size": 12,
        "log_level": "WARNING",
    }
    return cast(DBOSConfig, settings | others)


def check_settings() -> None:
    """Refuse settings of DBOS with which work would be lost, or done twice."""
    if DBOS.executor_id == "local":
        raise ConfigurationError(
            "each process of a fleet needs an executor_id of its own in the configuration of DBOS: "
            "see luma_poll.dbos.fleet_config"
        )
    if re.fullmatch(r"[0-9a-f]{32}|DEFAULT_VERSION.*", DBOS.application_version):
        raise ConfigurationError(
            "a fleet needs a pinned application_version in the configuration of DBOS, for its own "
            "changes with every upgrade, which strands what is under way: see "
            "luma_poll.dbos.fleet_config"
        )
