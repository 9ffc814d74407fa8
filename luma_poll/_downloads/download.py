"""All outputs of one generation: into files, into memory, or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

import anyio

from luma_poll._api.answers import as_generation
from luma_poll._arguments import check_count, check_generation_id, check_positive, shown
from luma_poll._downloads.files import check_directory, on_disk
from luma_poll._downloads.memory import NOWHERE, Channel, Memory
from luma_poll._downloads.names import Naming, naming_of
from luma_poll._downloads.output import (
    Deadline,
    DownloadProgress,
    OutOfTimeError,
    Sink,
    Transfer,
    backoff,
    is_final,
    too_late,
)
from luma_poll._downloads.ownership import Owner
from luma_poll._downloads.saving import Overwrite, Saving
from luma_poll._downloads.storage import Storage
from luma_poll._downloads.viewing import Files
from luma_poll.errors import (
    APIError,
    ConfigurationError,
    DownloadError,
    InvalidResponseError,
    OutputNotFoundError,
)
from luma_poll.models import Generation, GenerationOutput, numbers_of

MAX_BYTES: Final = 2 * 1024**3
"""Bytes of one file, unless the caller says otherwise."""
MAX_READ: Final = 256 * 1024**2
"""Bytes of one output in memory, unless the caller says otherwise."""
TIMEOUT: Final = 600.0
"""Seconds for all outputs of a generation, unless the caller says otherwise."""

Get = Callable[[str], "anyio.abc.Awaitable[Generation]"]
