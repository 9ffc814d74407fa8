"""The database of a fleet: its connections, its clock, and the meaning of its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import sqlalchemy as sa
from anyio.lowlevel import RunVar
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from luma_poll._fleet.tables import Tables
from luma_poll._logging import fields, logger
from luma_poll._tasks.backoff import backoff
from luma_poll.errors import ConfigurationError, LumaError

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_ANSWER = 25.0
"""Seconds for one call. A connection that does not answer by then is abandoned."""
LONGEST_PAUSE = 5.0
"""The most seconds between two attempts to reach the database."""
THREADS = 8
"""The most calls at once in one process."""

_OF_THE_STATEMENT = ("0A", "22", "23", "28", "2F", "3D", "3F", "42")
"""Classes of SQLSTATE that a retry cannot help: data, constraints, passwords, names, rights."""
_POSTGRESQL = {
    "connect_timeout": 10,
    # A connection that died silently is noticed within 25 seconds.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    # A pooler in transaction mode gives each transaction another connection, which does not have
    # the statements that an earlier one prepared.
    "prepare_threshold": None,
    "application_name": "luma-poll",
}
# A worker that waits for a lock, or dies with one, must not hold up the fleet. Set in each
# transaction, because a pooler refuses settings that come with the connection.
_LIMITS = (
    "set_config('lock_timeout', '5s', true), set_config('statement_timeout', '20s', true), "
    "set_config('idle_in_transaction_session_timeout', '15s', true)"
)
_limiter = RunVar[anyio.CapacityLimiter]("luma_poll_fleet_threads")


class FleetDatabaseError(LumaError):
    """The database of a fleet cannot be used. Nothing that was recorded is lost.

    Attributes:
        retryable: True if the database is out of reach, and the same call may succeed later.
        sqlstate: PostgreSQL's code, or None.
    """

    def __init__(
        self, message: str, *, retryable: bool = True, sqlstate: str | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.sqlstate = sqlstate


class Database:
    """The connections to the database of a fleet, whose transactions run in threads.

    Args:
        url: `postgresql://...` or `sqlite:///...`.
        name: The name of the fleet.
        schema: The schema of the fleet's tables, for PostgreSQL.

    Raises:
        ConfigurationError: The URL is not one of these.
    """

    def __init__(self, url: str | sa.URL, name: str, schema: str | None) -> None:
        try:
            parts = sa.make_url(url)
            backend = parts.get_backend_name()
        except (ArgumentError, NoSuchModuleError, AttributeError, TypeError):
            parts, backend = sa.URL.create("none"), ""
        # Hosting services write "postgres://" into their variables, which SQLAlchemy refuses.
        self.is_postgresql = backend.startswith("postgres")
        if not self.is_postgresql and backend != "sqlite":
            raise ConfigurationError("a database is given as postgresql://... or sqlite:///...")
        if self.is_postgresql:
            options: dict[str, Any] = {
                "connect_args": _POSTGRESQL,
                "pool_size": 4,
                "max_overflow": THREADS,
                "pool_timeout": 10,
                "pool_recycle": 600,
            }
            parts = parts.set(drivername="postgresql+psycopg")
        else:
            options = {"connect_args": {"timeout": 15, "check_same_thread": False}}
            parts = parts.set(drivername="sqlite")
        self.path = None if self.is_postgresql else parts.database
        self.place = parts.render_as_string(hide_password=True).partition("?")[0]
        self.engine = sa.create_engine(parts, **options)
        if not self.is_postgresql:
            _begin_immediately(self.engine)
        self.tables = Tables(name, schema if self.is_postgresql else None)

    @contextmanager
    def transaction(self) -> Iterator[tuple[sa.Connection, float]]:
        """Open a transaction; yield its connection, and the time by the database's clock.

        Raises:
            FleetDatabaseError: The transaction failed.
        """
        try:
            with self.engine.begin() as connection:
                limits = f"{_LIMITS}, " if self.is_postgresql else ""
                row = connection.execute(sa.text(f"SELECT {limits}{self._clock}")).one()
                yield connection, float(row[-1])
        except SQLAlchemyError as error:
            raise self._translated(error) from None

    def now(self, connection: sa.Connection) -> float:
        """Return the time now, after any wait for a lock in the transaction."""
        return float(connection.execute(sa.text(f"SELECT {self._clock}")).scalar_one())

    @property
    def _clock(self) -> str:
        if self.is_postgresql:
            return "extract(epoch from clock_timestamp())"
        return "(julianday('now') - 2440587.5) * 86400.0"

    def _translated(self, error: SQLAlchemyError) -> FleetDatabaseError:
        state = getattr(getattr(error, "orig", None), "sqlstate", None)
        if state == "25006" or (isinstance(error, DBAPIError) and error.connection_invalidated):
            # After a failover, the pool's connections lead to a server that is now read-only.
            self.engine.dispose()
        final = str(state or "").startswith(_OF_THE_STATEMENT)
        # Without the statement, whose parameters would show prompts, and without the URL.
        reason = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0][:200]
        return FleetDatabaseError(
            f"the database {'refuses' if final else 'is out of reach'}"
            f" ({type(error).__name__}{f', {state}' if state else ''}): {reason}",
            retryable=not final,
            sqlstate=state,
        )

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread, once.

        Raises:
            FleetDatabaseError: The database failed, or did not answer in time.
        """
        with anyio.move_on_after(LONGEST_ANSWER):
            return await anyio.to_thread.run_sync(
                lambda: work(*args, **kwargs), abandon_on_cancel=True, limiter=_threads()
            )
        self.engine.dispose()
        raise FleetDatabaseError(f"the database has not answered within {LONGEST_ANSWER:g} s")

    async def insist(
        self, label: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function in a thread until it succeeds; this never gives up.

        Args:
            label: A description for the log, in case this process dies before it succeeds.
            work: The function. It may take effect twice, when an answer is lost.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        tries = 0
        while True:
            try:
                return await self.call(work, *args, **kwargs)
            except Exception as error:  # of any kind: what is recorded here is paid for
                logger.warning("not recorded yet, %s: %s", label, error, extra=fields(error=error))
            tries += 1
            await anyio.sleep(backoff(tries, 0.2, LONGEST_PAUSE))

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()


def _threads() -> anyio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _limiter.set(limiter)
        return limiter


def _begin_immediately(engine: sa.Engine) -> None:
    """Begin SQLite's transactions as writers: one that has only read may fail to become one."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
