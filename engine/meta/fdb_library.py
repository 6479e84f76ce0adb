"""FoundationDB's client library: found, loaded and started once, and the calls that we make.

The official Python binding (``foundationdb``) finds the library, selects the API version, and owns
the network thread, which it stops when the process exits. The calls on the path of a request go
to the library directly: the binding makes two objects and three Python frames of each.

Calls are declared on ``ctypes.PyDLL``: they keep the interpreter lock. None of them waits; each
takes a spin lock or puts a message on the network thread's queue, and to give the interpreter
lock away and fight for it again costs more than the call.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_void_p, string_at
from pathlib import Path
from struct import iter_unpack
from typing import Any

from engine.errors import ConfigError

API_VERSION = 730
"""The oldest that we support: clients and clusters of FoundationDB 7.3 and newer 7.x have it."""

INSTALL = (
    "install the package foundationdb-clients of FoundationDB's releases "
    "(github.com/apple/foundationdb/releases), of the cluster's version"
)

SUCCESS = 0
OPERATION_CANCELLED = 1101
COMMIT_UNKNOWN_RESULT = 1021
NOT_COMMITTED = 1020

_MUTATION_ADD = 2
_MUTATION_VERSIONSTAMPED_KEY = 14
_MUTATION_VERSIONSTAMPED_VALUE = 15
_CONFLICT_READ = 0
_RETRYABLE, _MAYBE_COMMITTED = 50000, 50001
_TIMEOUT_OPTION, _RETRY_DELAY_OPTION = 500, 502
_SIZE_KNOB = "transaction_size_limit=12000000"
"""The contract's 10 MB are keys and values; FoundationDB's own count adds conflict ranges."""
_WANT_ALL, _EXACT = -2, 0

_KEY_VALUE = "<QiQi"
"""``FDBKeyValue``: two pointers with lengths, packed to 4 bytes."""
_KEY_VALUE_SIZE = 24

_lock = threading.Lock()
_started: list[Library] = []
"""The library once it is loaded: the client allows that once in a process."""


def load(path: Path | None) -> Library:
    """Return the client library, loaded and its network thread running.

    Args:
        path: the library's file; None looks where the binding does: beside the Python package
            ``fdb``, then on the system's library path.
    Raises:
        ConfigError: binding or library is not installed, or they don't fit together.
    """
    with _lock:
        if not _started:
            _started.append(_load(path))
        return _started[0]


def _load(path: Path | None) -> Library:
    try:
        if path is not None:
            # The loader knows a library by its name: the binding then finds this one.
            ctypes.CDLL(str(path))
        fdb: Any = importlib.import_module("fdb")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"metadata on FoundationDB needs the Python package foundationdb ({error}); "
            "install it: pip install 'lodestore[fdb]'"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error}; {INSTALL}") from error
    try:
        fdb.api_version(API_VERSION)
        fdb.options.set_knob(_SIZE_KNOB)
        fdb.impl.init()
    except Exception as error:  # the binding raises plain Exception, RuntimeError and FDBError
        raise ConfigError(_why(error, path, Path(fdb.__file__).parent)) from error
    return Library(ctypes.PyDLL(fdb.impl._capi._name, handle=fdb.impl._capi._handle))


def _why(error: Exception, path: Path | None, package: Path) -> str:
    if "locate" not in str(error):
        return f"FoundationDB's client library cannot be used: {error}"
    places = [str(path)] if path is not None else []
    places += [str(package / "libfdb_c.so"), "the system's library path (see ldconfig -p)"]
    return (
        "FoundationDB's client library libfdb_c.so was not found; looked at "
        f"{', '.join(places)}; {INSTALL}, or name the file: fdb:CLUSTERFILE?library=FILE"
    )


class Library:
    """The calls of ``libfdb_c`` that we make, on plain integers for pointers; for one thread.

    Codes that are returned are FoundationDB's error codes, 0 for success
    (https://apple.github.io/foundationdb/api-error-codes.html).
    """

    def __init__(self, capi: ctypes.PyDLL) -> None:
        def declare(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            function = capi["fdb_" + name]
            function.restype = result
            function.argtypes = arguments
            return function

        self._declare_transactions(declare)
        self._declare_futures(declare)
        self._get_error = declare("get_error", c_char_p, c_int)
        self._predicate = declare("error_predicate", c_int, c_int, c_int)
        # Where calls put what they return: made once, for one thread.
        self._pointer, self._length, self._flag = c_void_p(), c_int(), c_int()
        self._to_pointer = byref(self._pointer)
        self._to_length = byref(self._length)
        self._to_flag = byref(self._flag)

    def _declare_transactions(self, declare: Callable[..., Callable[..., Any]]) -> None:
        self._create_database = declare("create_database", c_int, c_char_p, POINTER(c_void_p))
        self.destroy_database: Callable[[int], None] = declare("database_destroy", None, c_void_p)
        self._database_option = declare(
            "database_set_option", c_int, c_void_p, c_int, c_char_p, c_int
        )
        self._create_transaction = declare(
            "database_create_transaction", c_int, c_void_p, POINTER(c_void_p)
        )
        self.destroy_transaction: Callable[[int], None] = declare(
            "transaction_destroy", None, c_void_p
        )
        self._transaction_option = declare(
            "transaction_set_option", c_int, c_void_p, c_int, c_char_p, c_int
        )
        self.get: Callable[[int, bytes, int, bool], int] = declare(
            "transaction_get", c_void_p, c_void_p, c_char_p, c_int, c_int
        )
        selector = (c_char_p, c_int, c_int, c_int)
        self._get_range = declare(
            "transaction_get_range",
            c_void_p,
            *(c_void_p, *selector, *selector, c_int, c_int, c_int, c_int, c_int, c_int),
        )
        self.set: Callable[[int, bytes, int, bytes, int], None] = declare(
            "transaction_set", None, c_void_p, c_char_p, c_int, c_char_p, c_int
        )
        self.clear: Callable[[int, bytes, int], None] = declare(
            "transaction_clear", None, c_void_p, c_char_p, c_int
        )
        self.clear_range: Callable[[int, bytes, int, bytes, int], None] = declare(
            "transaction_clear_range", None, c_void_p, c_char_p, c_int, c_char_p, c_int
        )
        self._atomic = declare(
            "transaction_atomic_op", None, c_void_p, c_char_p, c_int, c_char_p, c_int, c_int
        )
        self._conflict = declare(
            "transaction_add_conflict_range",
            c_int,
            *(c_void_p, c_char_p, c_int, c_char_p, c_int, c_int),
        )
        self.watch: Callable[[int, bytes, int], int] = declare(
            "transaction_watch", c_void_p, c_void_p, c_char_p, c_int
        )
        self.commit: Callable[[int], int] = declare("transaction_commit", c_void_p, c_void_p)
        self.on_error: Callable[[int, int], int] = declare(
            "transaction_on_error", c_void_p, c_void_p, c_int
        )

    def _declare_futures(self, declare: Callable[..., Callable[..., Any]]) -> None:
        self.is_ready: Callable[[int], int] = declare("future_is_ready", c_int, c_void_p)
        self.set_callback: Callable[[int, int, int], int] = declare(
            "future_set_callback", c_int, c_void_p, c_void_p, c_void_p
        )
        self.cancel: Callable[[int], None] = declare("future_cancel", None, c_void_p)
        self.destroy: Callable[[int], None] = declare("future_destroy", None, c_void_p)
        self.error_of: Callable[[int], int] = declare("future_get_error", c_int, c_void_p)
        self._get_value = declare(
            "future_get_value",
            c_int,
            *(c_void_p, POINTER(c_int), POINTER(c_void_p), POINTER(c_int)),
        )
        self._get_pairs = declare(
            "future_get_keyvalue_array",
            c_int,
            *(c_void_p, POINTER(c_void_p), POINTER(c_int), POINTER(c_int)),
        )

    def describe(self, code: int) -> str:
        """Return FoundationDB's sentence for an error code."""
        text: bytes = self._get_error(code)
        return f"{text.decode()} ({code})"

    def is_retryable(self, code: int) -> bool:
        return bool(self._predicate(_RETRYABLE, code))

    def may_be_committed(self, code: int) -> bool:
        """Return whether a commit that answered ``code`` may have happened."""
        return bool(self._predicate(_MAYBE_COMMITTED, code))

    def create_database(self, cluster_file: Path) -> tuple[int, int]:
        """Return (code, database); the caller destroys it."""
        code: int = self._create_database(str(cluster_file).encode(), self._to_pointer)
        return code, self._pointer.value or 0

    def set_defaults(self, database: int, *, timeout_ms: int, retry_ms_max: int) -> None:
        """Bound every transaction of the database, its retries included, and the delay before a
        retry, which doubles with each."""
        for option, value in (
            (_TIMEOUT_OPTION, timeout_ms),
            (_RETRY_DELAY_OPTION, retry_ms_max),
        ):
            self._database_option(database, option, value.to_bytes(8, "little"), 8)

    def create_transaction(self, database: int) -> int:
        self._create_transaction(database, self._to_pointer)
        return self._pointer.value or 0

    def set_timeout(self, transaction: int, milliseconds: int) -> None:
        """Bound one transaction, its retries included; 0 takes the bound away."""
        option = milliseconds.to_bytes(8, "little")
        self._transaction_option(transaction, _TIMEOUT_OPTION, option, 8)

    def get_range(
        self,
        transaction: int,
        begin: bytes,
        end: bytes,
        *,
        limit: int,
        reverse: bool,
        snapshot: bool,
        iteration: int,
    ) -> int:
        """Return a future for pairs with ``begin <= key < end``; see ``pairs``."""
        # A key selector "first greater or equal" is (or_equal=0, offset=1).
        mode = _EXACT if limit else _WANT_ALL
        future: int = self._get_range(
            *(transaction, begin, len(begin), 0, 1, end, len(end), 0, 1),
            *(limit, 0, mode, iteration, snapshot, reverse),
        )
        return future

    def add(self, transaction: int, key: bytes, operand: bytes) -> None:
        self._atomic(transaction, key, len(key), operand, len(operand), _MUTATION_ADD)

    def set_versionstamped_key(self, transaction: int, key: bytes, value: bytes) -> None:
        """``key`` ends with the place of the stamp's 10 bytes, as 4 little-endian bytes."""
        self._atomic(transaction, key, len(key), value, len(value), _MUTATION_VERSIONSTAMPED_KEY)

    def set_versionstamp(self, transaction: int, key: bytes) -> None:
        """Set ``key`` to the commit's versionstamp."""
        # 10 bytes for the stamp, then its place in the value: the beginning.
        self._atomic(transaction, key, len(key), bytes(14), 14, _MUTATION_VERSIONSTAMPED_VALUE)

    def add_read_conflict(self, transaction: int, key: bytes) -> None:
        """Let the commit fail if another has written ``key`` since this transaction's snapshot."""
        self._conflict(transaction, key, len(key), key + b"\0", len(key) + 1, _CONFLICT_READ)

    def value(self, future: int) -> tuple[int, bytes | None]:
        """Return (code, value) of a ready ``get``."""
        code = self._get_value(future, self._to_flag, self._to_pointer, self._to_length)
        if code or not self._flag.value:
            return code, None
        return SUCCESS, string_at(self._pointer.value or 0, self._length.value)

    def pairs(self, future: int, strip: int) -> tuple[int, Sequence[tuple[bytes, bytes]], bool]:
        """Return (code, pairs, whether there are more) of a ready ``get_range``.

        Args:
            strip: bytes to leave out at the front of each key.
        """
        code = self._get_pairs(future, self._to_pointer, self._to_length, self._to_flag)
        count = self._length.value
        if code or not count:
            return code, (), False
        rows = string_at(self._pointer.value or 0, count * _KEY_VALUE_SIZE)
        pairs = [
            (string_at(key + strip, key_size - strip), string_at(value, value_size))
            for key, key_size, value, value_size in iter_unpack(_KEY_VALUE, rows)
        ]
        return SUCCESS, pairs, bool(self._flag.value)


def c_stream(fd: int) -> tuple[int, int, Callable[[], None]]:
    """Open a C stream without a buffer on ``fd``, which it takes over.

    Returns: (address of C's ``putw``, the stream, what closes it).
    """
    libc = ctypes.PyDLL(None)
    libc.fdopen.restype, libc.fdopen.argtypes = c_void_p, (c_int, c_char_p)
    libc.setvbuf.argtypes = (c_void_p, c_void_p, c_int, ctypes.c_size_t)
    libc.fclose.argtypes = (c_void_p,)
    stream: int = libc.fdopen(fd, b"wb")
    unbuffered = 2  # _IONBF, the same number in glibc, musl and macOS
    libc.setvbuf(stream, None, unbuffered, 0)
    putw = ctypes.cast(libc.putw, c_void_p).value or 0

    def close() -> None:
        libc.fclose(stream)

    return putw, stream, close
