"""Callbacks by the Standard Webhooks specification: signed, at least once, to public addresses.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import binascii
import json
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from socket import SOCK_STREAM
from typing import Any

import anyio
import httpx
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from luma_poll._version import __version__
from luma_poll.errors import ConfigurationError

PAUSES = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds before each attempt, as the specification proposes: three days in all."""
TIMEOUT = 15.0
"""Seconds for one attempt, from the look-up of the name to the status of the answer."""
MOST_AT_ONCE = 200
"""The most calls under way in one worker."""
MOST_TO_A_HOST = 4
"""The most of these to one host, so that a receiver that hangs holds up only its own calls."""
LEASE = 60.0
"""Seconds after which another worker repeats a call whose outcome was not recorded."""
DELIVERED = "delivered"
GONE = "gone"
_NAT64 = IPv6Network("64:ff9b::/96")
# IANA's special addresses. The `ipaddress` of some Python 3.11 calls several of them global.
_INTERNAL = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
            "::/127",
            "64:ff9b:1::/48",
            "100::/64",
            "2001::/23",
            "2001:db8::/32",
            "3fff::/20",
            "5f00::/16",
            "fc00::/7",
            "fe80::/10",
            "fec0::/10",
            "ff00::/8",
        ),
    )
)


def check_secrets(secrets: Sequence[str]) -> list[Webhook]:
    """Return the secrets as signers.

    Raises:
        ConfigurationError: A secret is not base64, or `secrets` is one string.
    """
    if isinstance(secrets, str):
        raise ConfigurationError("callback_secrets must be a sequence of secrets, not one string")
    try:
        return [Webhook(secret) for secret in secrets]
    except (EmptyWebhookSecretError, RuntimeError, TypeError, binascii.Error, ValueError):
        problem = "each of callback_secrets must be base64, with or without whsec_ before it"
    raise ConfigurationError(problem)  # outside the `except`, whose error may hold a secret


def check_url(url: str, *, allow_private: bool) -> None:
    """Refuse a URL to which no callback is sent.

    Raises:
        ConfigurationError: The URL is invalid, not https, has a user name, or points to a private
            address.
    """
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        raise ConfigurationError("callback is not a valid URL") from None
    if not parts.host or parts.scheme not in (("http", "https") if allow_private else ("https",)):
        raise ConfigurationError("callback must begin with https:// and a host")
    if parts.userinfo:
        raise ConfigurationError("callback must not have a user name or password")
    try:
        address = ip_address(parts.host)
    except ValueError:
        return  # a name: its address is checked at each call, when it is looked up
    if not (allow_private or is_public(address)):
        raise ConfigurationError(f"callback must not have the private address {address}")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return False for private, loopback, link-local, reserved and multicast addresses."""
    if isinstance(address, IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(IPv4Address(int(address) & 0xFFFF_FFFF))
        if any(each is not None and not is_public(each) for each in inner):
            return False
        if address.ipv4_mapped or address in _NAT64:
            return True
    if any(address.version == each.version and address in each for each in _INTERNAL):
        return False
    return address.is_global and not address.is_multicast


def next_try(outcome: str, tries: int) -> tuple[str, float]:
    """Return the state of a callback after an attempt, and the seconds until the next one.

    Args:
        outcome: The result of `deliver`.
        tries: How often it was tried so far.
    """
    if outcome in (DELIVERED, GONE):
        return outcome, 0.0
    if tries >= len(PAUSES):
        return "given up", 0.0
    return "due", PAUSES[tries] * random.uniform(0.8, 1.2)


def sign(
    signers: Sequence[Webhook], message_id: str, body: str, now: datetime | None = None
) -> dict[str, str]:
    """Return the headers that prove the origin of a message, signed with each of the secrets."""
    now = (now or datetime.now(UTC)).astimezone(UTC)  # `sign` treats any other zone as UTC
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(each.sign(message_id, now, body) for each in signers),
    }


async def deliver(
    http: httpx.AsyncClient,
    url: str,
    message_id: str,
    event: Mapping[str, Any],
    signers: Sequence[Webhook],
    *,
    allow_private: bool,
) -> str:
    """Send one message once.

    Returns:
        `DELIVERED`, `GONE` (the receiver answered 410), or the reason to try again.
    """
    if not signers:
        return "this worker has no callback_secrets"
    body = json.dumps(event, separators=(",", ":"))
    headers = sign(signers, message_id, body) | {
        "Content-Type": "application/json",
        "User-Agent": f"luma-poll/{__version__}",
    }
    status = None
    try:
        with anyio.move_on_after(TIMEOUT):
            status = await _post(http, httpx.URL(url), headers, body.encode(), allow_private)
    except (httpx.HTTPError, OSError, ConfigurationError) as error:
        return f"{type(error).__name__}: {error}"[:200]
    if status is None:
        return f"no answer within {TIMEOUT:g} s"
    if status == 410:
        return GONE
    return DELIVERED if 200 <= status < 300 else f"HTTP {status}"


async def _post(
    http: httpx.AsyncClient, url: httpx.URL, headers: dict[str, str], body: bytes, private: bool
) -> int:
    port = url.port or (443 if url.scheme == "https" else 80)
    found = await anyio.getaddrinfo(url.host, port, type=SOCK_STREAM)
    addresses = [ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    if not private and not all(map(is_public, addresses)):
        raise ConfigurationError(f"{url.host} has a private address, to which no callback is sent")
    # To the address that was checked: a second look-up of the name could return a private one.
    request = http.build_request(
        "POST",
        url.copy_with(host=str(addresses[0])),
        headers={**headers, "Host": url.netloc.decode("ascii")},
        content=body,
        extensions={"sni_hostname": url.raw_host.decode("ascii")},
    )
    answer = await http.send(request, stream=True, follow_redirects=False)
    await answer.aclose()  # the body is not read: it may be endless
    return answer.status_code
