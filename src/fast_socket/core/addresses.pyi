from ipaddress import IPv4Address, IPv6Address

Host = str | IPv4Address | IPv6Address
Address = str | tuple[Host, int] | tuple[str, int, int, int]

def parse_address(address: Address, what: str = "address") -> tuple[str, int]: ...
