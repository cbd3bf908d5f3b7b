"""What a server is started with."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finesteer_local.errors import FineSteerError
from finesteer_local.identity import ModelIdentity
from finesteer_local.profile import Profile

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    parallel: int = 4  # requests answered at the same time
    queue: int = 64  # requests that wait for a place
    max_tokens: int | None = None  # longest answer; None is the context's room
    body: int = 1 << 20  # bytes of a request
    messages: int = 512  # of one conversation
    prompts: int = 32  # of one completion request
    seconds: float = 600.0  # from a request's arrival to its answer's end
    corrections: int = 4 << 20  # bytes of the file of corrections, beyond which clients add none
    stall: float = 120.0  # after which an engine that does not move counts as stuck; twice that ends the server


@dataclass(frozen=True)
class ServerSettings:
    """A server's model, steering, address and limits."""

    path: Path  # of the model
    name: str  # what clients call it
    profiles: tuple[Profile, ...] = ()  # those that are active by default, in their order
    required: frozenset[str] = frozenset()  # names of those that no request can weaken
    strength: float | None = None  # instead of the profiles' own
    scope: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)  # what is done about each kind of request
    skip_thinking: bool = False  # leave the thoughts of reasoning models unsteered
    on_answer: str | None = None  # what is done once an answer shows what its prompt hid; None is the profiles' own
    look_ahead: int | None = None  # tokens of a stream that are held back for it
    ctx: int = 0  # tokens of one request with its answer; 0 is the model's own, at most 4096
    threads: int | None = None
    gpu_layers: int = -1
    rpc: tuple[str, ...] = ()  # workers that the model is spread over, host:port
    host: str = "127.0.0.1"
    host_names: frozenset[str] = frozenset()  # further names under which clients reach the server
    api_key: str | None = None
    corrections: bool | None = None  # whether clients may add to them; None: see `keeps_corrections`
    limits: Limits = Limits()
    identity: ModelIdentity | None = None  # of the model, where it was read before

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", plain_host(self.host))
        check_address(self.host, self.api_key)
        unknown = self.required - {profile.name for profile in self.profiles}
        if unknown:
            raise ValueError(f"required, but not active: {', '.join(sorted(unknown))}")

    @property
    def keeps_corrections(self) -> bool:
        """Whether clients may add corrections to the file of the user who runs the server.

        Where nobody said so, only if nobody else is meant to reach it: not from another address, by another name (a
        proxy's) or with a key.
        """
        if self.corrections is not None:
            return self.corrections
        return is_loopback(self.host) and not self.host_names and not self.api_key

    def knows_host(self, name: str) -> bool:
        """Whether a request for host `name` (without its port) is for this server, and not for a rebound DNS name.

        A server that others reach is addressed by any of its machine's addresses; an attacker's page has a name.
        """
        name = name.lower().rstrip(".")
        if name in LOOPBACK_NAMES or name in self.host_names or name == self.host.lower():
            return True
        return not is_loopback(self.host) and is_address(name)


def check_address(host: str, api_key: str | None) -> None:
    """Raise `FineSteerError` where others could use the server without a key, or `host` is a URL."""
    if "/" in host:
        raise FineSteerError(f"--host takes a name or an address, such as 127.0.0.1, and {host!r} is neither")
    if not api_key and not is_loopback(plain_host(host)):
        raise FineSteerError(
            f"{host or 'an empty address'} can be reached from other machines; give an --api-key "
            "(or FINESTEER_API_KEY), or leave out --host"
        )


def model_name(given: str) -> str:
    """What clients call a model that the user named, or gave as a file."""
    name = Path(given).name
    return name[: -len(".gguf")] if name.lower().endswith(".gguf") else name


def plain_host(host: str) -> str:
    """`host` without the brackets that an IPv6 address has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
