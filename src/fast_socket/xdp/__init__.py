"""AF_XDP: packets straight between a device queue and user memory."""

__all__: list[str] = []
