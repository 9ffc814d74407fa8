"""The tables of a fleet. Their names contain the fleet's, so that several share a database."""

from __future__ import annotations

import re

import sqlalchemy as sa

from luma_poll._arguments import shown
from luma_poll.errors import ConfigurationError

SCHEMA = 1
"""The version of the tables, in the fleet's row. A worker refuses a newer one."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?")


def check_name(name: object) -> str:
    """Return the name of a fleet, which is part of the names of its tables.

    Raises:
        ConfigurationError: The name is too long, or has other characters.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            "the name of a fleet (queue) has 1 to 32 of the characters a-z, 0-9, _ and -, "
            f"not {shown(name)[:80]}"
        )
    return name


class Tables:
    """The five tables of one fleet.

    Args:
        name: The name of the fleet.
        schema: The schema that they are in; None for SQLite, which has none.
    """

    def __init__(self, name: str, schema: str | None) -> None:
        prefix = "luma" if name == "luma" else f"luma_{name}"
        self.metadata = sa.MetaData(schema=schema)
        self.fleet = sa.Table(
            f"{prefix}_fleet",
            self.metadata,
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # one row
            sa.Column("version", sa.Integer, nullable=False),
            sa.Column("max_running", sa.Integer),
            sa.Column("submissions_per_minute", sa.Integer),
            sa.Column("max_rate", sa.Float, nullable=False),
            sa.Column("mode", sa.Text, nullable=False),  # running, paused, draining
            sa.Column("why", sa.Text),  # the operator's reason for the mode
            sa.Column("account", sa.Text, nullable=False),  # what was learned about it, as JSON
            sa.Column("refusals", sa.Integer, nullable=False),  # 429s, in all
        )
        self.workers = sa.Table(
            f"{prefix}_workers",
            self.metadata,
            sa.Column("id", sa.Text, primary_key=True),
            sa.Column("beat", sa.Integer, nullable=False),  # counts up
            sa.Column("beat_at", sa.Float, nullable=False),
            sa.Column("started_at", sa.Float, nullable=False),
            sa.Column("notes", sa.Text, nullable=False),  # by the worker about itself, as JSON
        )
        # All times are seconds since 1970 by the database's clock, the only one that counts.
        self.submissions = sa.Table(
            f"{prefix}_submissions",
            self.metadata,
            sa.Column(
                "number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True
            ),
            sa.Column("key", sa.Text, nullable=False, unique=True),
            sa.Column("digest", sa.Text, nullable=False),
            sa.Column("request", sa.Text),  # NULL once it is forgotten
            sa.Column("kind", sa.Text, nullable=False),
            sa.Column("max_attempts", sa.Integer, nullable=False),
            sa.Column("timeout", sa.Float),
            sa.Column("callback", sa.Text),
            sa.Column("state", sa.Text, nullable=False),
            sa.Column("attempt", sa.Integer, nullable=False),  # the number of submissions begun
            sa.Column("refused", sa.Integer, nullable=False),  # in a row, not by the API itself
            sa.Column("due_at", sa.Float, nullable=False),
            sa.Column("owner", sa.Text),  # the worker that submits it or waits for it
            sa.Column("permit", sa.Text),  # held by the one call that may send this attempt
            sa.Column("generation_id", sa.Text),
            sa.Column("accepted_at", sa.Float),
            sa.Column("ends", sa.Integer, nullable=False),  # how many ends were announced
            sa.Column("end", sa.Text),  # as JSON
            sa.Column("created_at", sa.Float, nullable=False),
            sa.Column("updated_at", sa.Float, nullable=False),
        )
        rows = self.submissions.c
        sa.Index(f"{prefix}_submissions_state", rows.state, rows.number)
        sa.Index(
            f"{prefix}_submissions_owner", rows.owner, postgresql_where=rows.owner.is_not(None)
        )
        # One row per POST. It is written before the request is sent, and keeps the id for good.
        self.posts = sa.Table(
            f"{prefix}_posts",
            self.metadata,
            sa.Column("permit", sa.Text, primary_key=True),
            sa.Column("key", sa.Text, nullable=False),
            sa.Column("attempt", sa.Integer, nullable=False),
            sa.Column("worker", sa.Text, nullable=False),
            sa.Column("begun_at", sa.Float, nullable=False),
            sa.Column("ended_at", sa.Float),  # NULL while it is under way
            sa.Column("refused", sa.Boolean, nullable=False),  # certainly not accepted
            sa.Column("generation_id", sa.Text),
        )
        sa.Index(f"{prefix}_posts_key", self.posts.c.key)
        sa.Index(f"{prefix}_posts_ended", self.posts.c.ended_at)
        self.callbacks = sa.Table(
            f"{prefix}_callbacks",
            self.metadata,
            sa.Column("id", sa.Text, primary_key=True),  # of the message
            sa.Column("key", sa.Text, nullable=False),
            sa.Column("url", sa.Text, nullable=False),
            sa.Column("host", sa.Text, nullable=False),
            sa.Column("event", sa.Text, nullable=False),
            sa.Column("state", sa.Text, nullable=False),  # due, delivered, gone, given up
            sa.Column("tries", sa.Integer, nullable=False),
            sa.Column("due_at", sa.Float, nullable=False),  # during a call: the end of its lease
            sa.Column("last", sa.Text),  # the outcome of the last attempt
        )
        sa.Index(f"{prefix}_callbacks_due", self.callbacks.c.state, self.callbacks.c.due_at)
        sa.Index(f"{prefix}_callbacks_key", self.callbacks.c.key)
