"""Advisory locks that the death of their holder lets go: ``flock``, or marks beside the file where there is none.

A mark is an empty file ``<lock>.<writer token>.<n>.x`` (alone) or ``.s`` (shared). It counts while its writer cannot be
proven dead, so a killed process of this machine blocks nobody; the mark of a process on another machine is believed
until somebody removes it.
"""

from __future__ import annotations

import errno
import itertools
import os
from contextlib import suppress
from pathlib import Path

from sae import system
from workbench.activations.disk import calls as disk
from workbench.activations.disk import writer_token

_UNKNOWN = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS})
_numbers = itertools.count()


class Lock:
    """A lock on the file ``path``, taken without waiting; :meth:`close` lets it go.

    Raises:
        UntrustedFile: something other than a regular file is there.
    """

    def __init__(self, path: Path):
        self.path = path
        self._fd = system.open_file(path, write=True, create=True)
        self._mark = f"{path.name}.{writer_token.token()}.{next(_numbers)}"
        self._held = ""

    def take(self, *, exclusive: bool) -> bool:
        """Try to hold it alone or with others, in place of what was held before. True where taken, or where the file
        system knows no locks.
        """
        try:
            disk.faults.at("lock")
            if system.fcntl is None:
                return self._leave_mark("x" if exclusive else "s")
            how = system.fcntl.LOCK_EX if exclusive else system.fcntl.LOCK_SH
            system.fcntl.flock(self._fd, how | system.fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as e:
            if e.errno not in _UNKNOWN:
                raise
        return True

    def _leave_mark(self, kind: str) -> bool:
        """Mark first, then look for others: of two that come together at least one sees the other, and gives way."""
        if kind == self._held:
            return True
        mine = self.path.with_name(f"{self._mark}.{kind}")
        os.close(system.open_file(mine, write=True, new=True))
        if any(kind == "x" or name.endswith(".x") for name in self.others()):
            mine.unlink()
            return False
        self._forget()
        self._held = kind
        return True

    def others(self) -> list[str]:
        """Names of marks whose holders are not certainly dead (none where locks are locks); those of the dead go
        on the way.
        """
        found = []
        for name in os.listdir(self.path.parent):
            if not name.startswith(f"{self.path.name}.") or name.startswith(f"{self._mark}."):
                continue
            if writer_token.provably_dead(name.split(".")[-3]):
                with suppress(FileNotFoundError):
                    (self.path.parent / name).unlink()
            else:
                found.append(name)
        return found

    def _forget(self) -> None:
        if self._held:
            self.path.with_name(f"{self._mark}.{self._held}").unlink(missing_ok=True)
            self._held = ""

    def close(self) -> None:
        """Let go."""
        if self._fd >= 0:
            self._forget()
            os.close(self._fd)
            self._fd = -1
