"""AF_XDP: packets straight between a device queue and user memory."""
