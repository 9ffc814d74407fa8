"""The journal's file: created whole, open in one process at a time, untouched by forks."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from luma_poll.errors import ConfigurationError, JournalError

try:
    import fcntl
except ImportError:  # Windows, where SQLite's own locks belong to handles and need no help
    fcntl = None  # type: ignore[assignment]

APPLICATION = 0x4C504A31
"""The `application_id` in the file's header that marks a journal."""
HEADER, PAGE = 100, 4096
"""Bytes of an SQLite file's header, and of the first page, which begins with it."""
MAGIC = b"SQLite format 3\0"
LOCK_BYTE = 0x40000000 + 4096
"""The byte that our own lock is on, outside the 512 that SQLite locks."""
RETRY = 0.05
"""Seconds between two attempts to get a lock that another process has."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE entries (
        key TEXT PRIMARY KEY,
        fingerprint TEXT NOT NULL,
        request TEXT NOT NULL,
        state TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        generation_id TEXT,
        submitted TEXT NOT NULL DEFAULT '[]',
        failure_code TEXT,
        failure_reason TEXT,
        updated_at TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    "ALTER TABLE entries ADD COLUMN request_id TEXT",
    # 1 for an id that a person gave, or that the API does not know: it may be settled again.
    "ALTER TABLE entries ADD COLUMN doubtful INTEGER NOT NULL DEFAULT 0",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # The rules that made the fingerprint: the first dropped the whole query of a signed URL.
    "ALTER TABLE entries ADD COLUMN rules INTEGER NOT NULL DEFAULT 1",
)
"""The statement that leads from each version (in `user_version`) to the next one."""


class Database:
    """An open journal file: its connection, and the locks that keep other processes out.

    Args:
        path: The path that was given, for messages.
        wait: Seconds to wait for another process that has it open.

    Attributes:
        connection: The connection, for one thread at a time, whichever it is.

    Raises:
        ConfigurationError: The file is in use, belongs to another program, or was written by a
            newer version.
        JournalError: The file is damaged, or cannot be read.
    """

    def __init__(self, path: Path, wait: float) -> None:
        self.path = path
        self._pid = os.getpid()
        self._lock_file: int | None = None
        self._inode: tuple[int, int] | None = None
        with self._errors():
            self._real = Path(os.path.realpath(path))
        give_up_at = time.monotonic() + wait
        while True:
            try:
                self.connection = self._open()
                break
            except _InUseError as error:
                self._release()
                if time.monotonic() >= give_up_at:
                    raise ConfigurationError(str(error)) from None
            except BaseException:
                self._release()
                raise
            time.sleep(RETRY)
        _open_databases.add(self)

    def __del__(self) -> None:
        if hasattr(self, "connection"):  # it was opened
            self.close()

    @property
    def is_of_a_fork(self) -> bool:
        """True in a forked child of the process that opened it, which owns the file and locks."""
        return self._pid != os.getpid()

    @property
    def is_moved(self) -> bool:
        """True if its path now leads to another file, or to none."""
        return self._inode != _inode_of(self._real)

    @property
    def is_deleted(self) -> bool:
        """True if no path leads to the file: what is written is lost when the process ends."""
        return self._lock_file is not None and os.fstat(self._lock_file).st_nlink == 0

    def close(self) -> None:
        """Close it, and leave a single file. In a fork this does nothing."""
        if self.is_of_a_fork:
            return
        # Deletes the rollback journal beside the file. It is empty, so a failure does no harm.
        with suppress(sqlite3.Error):
            self.connection.execute("PRAGMA locking_mode = NORMAL")
            self.connection.execute("PRAGMA journal_mode = DELETE")
        self.connection.close()
        self._release()
        _open_databases.discard(self)

    def abandon(self) -> None:
        """Let go of it in a child after a fork, without touching the parent's file.

        Closing the connection would end the parent's transaction. Python would close it when it
        frees the object, at the latest when the child exits, so the object is never freed.
        """
        import ctypes  # loaded by `_open` before: an import right after a fork may deadlock

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))
        if self._lock_file is not None:
            os.close(self._lock_file)  # the parent's descriptor keeps the lock
            self._lock_file = None

    def _open(self) -> sqlite3.Connection:
        with suppress(ImportError):
            import ctypes  # noqa: F401 - for `abandon`
        with self._errors():
            if not self._real.exists():
                self._create()
            self._lock()
            self._check_header()
            connection = sqlite3.connect(
                self._real,  # absolute, so that a file called ":memory:" is a file
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._errors():
                self._begin(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin(self, connection: sqlite3.Connection) -> None:
        # A lock of the operating system ends with the process, even if the process is killed.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        version = self._check_version(connection)
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise JournalError(f"journal {self.path} is damaged: restore a copy of it")
        self._hide()
        # With a rollback journal, the file by itself is complete after each commit. A write-ahead
        # log is faster, but a file that is copied without its log lacks the latest submissions.
        connection.execute("PRAGMA journal_mode = PERSIST")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: down to the disk's platters
        connection.execute("BEGIN EXCLUSIVE")
        migrate(connection, version)
        connection.execute("COMMIT")

    def _create(self) -> None:
        """Create an empty journal under another name, then rename it: it is never half made.

        Raises:
            JournalError: The file is missing, but a rollback journal for it exists.
        """
        self._check_leftovers()
        handle, name = tempfile.mkstemp(".new", ".luma-journal-", self._real.parent)
        try:
            with closing(sqlite3.connect(name, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = MEMORY")
                connection.execute("BEGIN")
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                migrate(connection, 0)
                connection.execute("COMMIT")
            os.fsync(handle)
            _publish(Path(name), self._real)
        finally:
            os.close(handle)
            with suppress(OSError):
                os.unlink(name)

    def _check_leftovers(self) -> None:
        for suffix in ("-journal", "-wal"):
            beside = Path(f"{self._real}{suffix}")
            with suppress(FileNotFoundError), beside.open("rb") as file:
                if any(file.read(8)):
                    raise JournalError(
                        f"journal {self.path} is missing, but {beside.name} is there: put back the "
                        "file that it belongs to. To begin a new journal, delete it as well: "
                        "what was in it is then submitted, and billed, again"
                    )

    def _lock(self) -> None:
        """Take a lock that survives when this process copies the file.

        Closing any descriptor of a file drops the process's POSIX locks on it, SQLite's included.
        """
        inode = _inode_of(self._real)
        with _held_lock:
            if inode in _held:
                raise self._in_use()
            handle = os.open(self._real, os.O_RDWR | getattr(os, "O_BINARY", 0))
            if not _lock_descriptor(handle):
                os.close(handle)
                raise self._in_use()
            self._lock_file, self._inode = handle, inode
            if inode is not None:
                _held.add(inode)

    def _in_use(self) -> _InUseError:
        return _InUseError(
            f"journal {self.path} is in use by another process, or twice in this one"
        )

    def _release(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
        with _held_lock:
            _held.discard(self._inode)
        self._lock_file = self._inode = None

    def _check_header(self) -> None:
        """Refuse any other file before SQLite opens it, which may change the file."""
        assert self._lock_file is not None, "the file is locked before it is read"
        header = os.read(self._lock_file, PAGE)
        if len(header) < HEADER:
            raise JournalError(
                f"journal {self.path} is cut off ({len(header)} bytes): a journal is never so "
                "short. Restore a copy of it, or delete it to begin a new one; what was in it is "
                "then submitted, and billed, again"
            )
        if not header.startswith(MAGIC):
            raise JournalError(f"journal {self.path} is not a journal, or is damaged")
        (application,) = struct.unpack(">I", header[68:72])
        if application != APPLICATION and b"CREATE TABLE entries (" in header:
            raise JournalError(f"journal {self.path} is damaged: restore a copy of it")
        if application != APPLICATION:
            raise ConfigurationError(
                f"{self.path} is the database of another program, not a journal"
            )

    def _check_version(self, connection: sqlite3.Connection) -> int:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise ConfigurationError(
                f"journal {self.path} was written by a newer version of luma-poll: upgrade"
            )
        return int(version)

    def _hide(self) -> None:
        """Let only its owner read it: prompts are private."""
        if os.name != "posix":
            return
        for path in (self._real, Path(f"{self._real}-journal")):
            with suppress(FileNotFoundError, PermissionError):  # the latter if another user owns it
                mode = stat.S_IMODE(path.stat().st_mode)
                if mode & 0o077:
                    path.chmod(mode & 0o700)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the errors of opening the file."""
        try:
            yield
        except sqlite3.Error as error:
            if _is_busy(error):
                raise self._in_use() from None
            raise translated(self.path, error, ConfigurationError) from None
        except (OSError, ValueError) as error:
            raise self._translated(error) from None

    def _translated(self, error: OSError | ValueError) -> ConfigurationError | JournalError:
        if isinstance(error, UnicodeDecodeError):  # from SQLite's message, which quotes the damage
            return JournalError(f"journal {self.path} is damaged: restore a copy of it")
        if not isinstance(error, OSError):
            return ConfigurationError(f"journal {self.path}: {error}")
        if error.errno in _NO_LOCK_NUMBERS:
            return ConfigurationError(f"journal {self.path} {NO_LOCKS}")
        kind = JournalError if error.errno in _FULL_NUMBERS else ConfigurationError
        return kind(f"journal {self.path}: {error.strerror or error}")


class _InUseError(Exception):
    """The error for a file that another process, or another Journal of this one, has open."""


_held_lock = threading.Lock()
_held: set[tuple[int, int] | None] = set()
"""The files that this process has open: POSIX locks do not keep out a second Journal here."""
_open_databases = WeakSet["Database"]()


def _after_fork() -> None:
    global _held_lock  # another thread of the parent may have held it
    _held_lock = threading.Lock()
    _held.clear()
    for database in _open_databases:
        database.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables from this version to the newest."""
    for statement in MIGRATIONS[version:]:
        connection.execute(statement)
    if version < len(MIGRATIONS):
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def translated(
    path: Path, error: sqlite3.Error, otherwise: type[ConfigurationError | JournalError]
) -> ConfigurationError | JournalError:
    """Return our error for one of SQLite; of the class `otherwise` if a permission is missing."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return JournalError(f"journal {path} is damaged ({error}): restore a copy of it")
    if name in _NO_LOCKS:
        return ConfigurationError(f"journal {path} {NO_LOCKS}")
    if name.startswith("SQLITE_READONLY"):
        return otherwise(f"journal {path} cannot be written: it, or its directory, is read-only")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return JournalError(f"journal {path} cannot be written: {error}")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM")):
        return otherwise(f"journal {path} cannot be opened: {error}")
    return JournalError(f"journal {path} cannot be used: {error}")


NO_LOCKS = (
    "is on a file system without locks (a network share?), so that two processes could have it: "
    "keep it on a local disk"
)
_NO_LOCK_NUMBERS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_NO_LOCKS = frozenset(
    f"SQLITE_{name}"
    for name in ("IOERR_LOCK", "IOERR_RDLOCK", "IOERR_CHECKRESERVEDLOCK", "PROTOCOL", "NOLFS")
)


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _inode_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lock_descriptor(handle: int) -> bool:
    """Lock a byte for as long as this descriptor is open; return False if it is taken.

    Linux binds the lock to the descriptor. Elsewhere it ends when this process copies the file.
    """
    if fcntl is None:
        return True
    command = getattr(fcntl, "F_OFD_SETLK", None)
    try:
        if command is None:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCK_BYTE)
        else:
            wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, LOCK_BYTE, 1, 0)
            fcntl.fcntl(handle, command, wanted)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno != errno.EINVAL:  # a kernel without this kind of lock: SQLite's must do
            raise
    return True


def _publish(new: Path, path: Path) -> None:
    """Give a new file its name, unless another process was faster: then that one's file counts."""
    try:
        os.link(new, path)  # fails if the name exists; a rename would replace a journal in use
    except FileExistsError:
        return
    except (OSError, AttributeError):  # a file system without hard links
        if not path.exists():
            new.rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make the name of a new file survive a power cut, if the system can sync directories."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
