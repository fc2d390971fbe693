"""Errors a user can act on.

Every error a person can cause, or can mend, derives from :class:`UserError`. The command line prints its one-line
message without a traceback and exits with :attr:`UserError.exit_code`: 2 where the request itself is wrong (a typo in
a recipe, a port in use), 1 where the request was fine and the world was not (a corrupt file, a full disk).
Messages quote the offending value and say the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae.changes import Change


class UserError(Exception):
    """Base of every error whose message is meant for the person at the keyboard."""

    exit_code = 1


class UsageError(UserError):
    """The request itself cannot be meant: a bad option, recipe, name or combination."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe or configuration is wrong: unknown key, bad value, contradiction."""


class MissingError(UserError):
    """Something the request needs is not there (a folder, a file, an optional package)."""


class CorruptError(UserError):
    """A file exists and is not what its digest, header or manifest says."""


class NewerSchemaError(UserError):
    """A file was written by a newer version of this program."""


class OutOfSpace(UserError):
    """The disk is full, or would be."""

    def __init__(self, what: str, needed: int | None = None, free: int | None = None):
        sizes = (
            ""
            if needed is None
            else f": {needed:,} bytes needed, {free:,} free"
            if free is not None
            else f": {needed:,} bytes needed"
        )
        super().__init__(
            f"no space left for {what}{sizes}. Free some space, or choose a workspace on another disk, and run the same"
            " command again."
        )
        self.needed, self.free = needed, free


class MismatchError(UserError):
    """A result, or an unfinished run, exists and is not what is asked for: the message names each key and both values,
    and what to do. ``found`` lists them as :class:`sae.changes.Change`.
    """

    def __init__(self, message: str, found: Sequence[Change] = ()):
        super().__init__(message)
        self.found = tuple(found)


class NonFiniteError(UserError):
    """NaN or infinity where a finite number is needed; the message names the place."""


class UntrustedFile(UserError):
    """A foreign file that is refused: it could run code, read other files, or exhaust the machine."""
