"""What can go wrong, as classes.

Every error of the package is an `Error`, and every `Error` is an `OSError`: code that already guards a socket with
``except OSError`` keeps working. Messages say what was given, what is accepted and what to do.
"""

import os


class Error(OSError):
    """Root of the package's errors. `errno` is set where the kernel gave one."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        # OSError picks its errno and strerror out of a two-element args, and would print "[Errno None]" otherwise.
        if errno is None:
            super().__init__(message)
        else:
            super().__init__(errno, f"{message}: {os.strerror(errno)}")
        self._given = (message, errno)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross processes, as workers' do: made again from what they were made of."""
        return type(self), self._given, self.__dict__


class ConfigError(Error, ValueError):
    """A value that can never work, found before it did any harm. Names the field and the accepted range."""


class CapabilityError(Error):
    """The kernel, driver, library or privilege for this is missing. Says which, and how to get it."""


class DeviceError(Error):
    """A device or socket failed, is gone, or handed back something it must not. The socket can still be closed."""


class BufferTakenError(Error, BufferError):
    """A stale handle: its frame was sent, taken, or replaced by a later receive."""


class SendError(Error):
    """A slot of a transmit batch was refused.

    `accepted` slots before it were sent by this call and are gone from the batch; the refused one is now the first
    pending slot. Mend it and send again, or `discard(1)` it.
    """

    def __init__(self, message: str, errno: int | None = None, *, accepted: int = 0) -> None:
        super().__init__(message, errno)
        self.accepted = accepted
