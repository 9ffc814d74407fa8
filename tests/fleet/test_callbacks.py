"""Callbacks: whom they call, and how they prove who calls."""

import socket
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from typing import Any

import anyio
import httpx
import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from luma_poll import ConfigurationError
from luma_poll._fleet import callbacks

OLD, NEW = "whsec_" + "b2xk" * 8, "whsec_" + "bmV3" * 8
EVENT = {"type": "generation.completed", "data": {"key": "order-17"}}
PUBLIC = "93.184.216.34"


@pytest.mark.parametrize("secret", [OLD, NEW])
@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-7)), None])
def test_each_secret_verifies(secret: str, zone: timezone | None) -> None:
    """With Standard Webhooks' own library, whatever time zone this machine is in."""
    now = datetime.now(zone)
    headers = callbacks.sign(callbacks.check_secrets([OLD, NEW]), "id", "{}", now)
    assert Webhook(secret).verify("{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify('{"forged": true}', headers)


@pytest.mark.parametrize("secrets", ["whsec_abcd", ["whsec_"], [""], ["whsec_a"], [None]])
def test_an_unusable_secret_is_refused(secrets: Any) -> None:
    """And not shown."""
    with pytest.raises(ConfigurationError) as caught:
        callbacks.check_secrets(secrets)
    assert caught.value.__cause__ is None
    assert "whsec_a" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_private_addresses_are_not_public(address: str) -> None:
    """Nor are those that lead to them by way of IPv6."""
    assert not callbacks.is_public(ip_address(address))


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", f"::ffff:{PUBLIC}"])
def test_public_addresses_are_public(address: str) -> None:
    """They may be called."""
    assert callbacks.is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://",
        "https://user:password@example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://169.254.169.254/latest/meta-data",
        "nonsense",
        None,
    ],
)
def test_an_unusable_url_is_refused(url: Any) -> None:
    """When it is given, not after the generation."""
    with pytest.raises(ConfigurationError, match="callback"):
        callbacks.check_url(url, allow_private=False)


def test_a_usable_url_is_taken() -> None:
    """Private ones too, where they are allowed."""
    callbacks.check_url("https://example.com/hook?a=b", allow_private=False)
    callbacks.check_url("http://127.0.0.1:8000/hook", allow_private=True)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def getaddrinfo(host: str, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)


async def deliver(answer: Any, secrets: Any = (OLD,)) -> str:
    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport) as http:
        return await callbacks.deliver(
            http,
            "https://example.com/hook",
            "id",
            EVENT,
            callbacks.check_secrets(secrets),
            allow_private=False,
        )


@pytest.mark.anyio
async def test_a_name_with_a_private_address_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor one that has a public address besides."""
    resolve_to(monkeypatch, PUBLIC, "10.0.0.1")
    outcome = await deliver(lambda request: pytest.fail("it was called"))
    assert "private address" in outcome


@pytest.mark.anyio
async def test_the_address_that_was_checked_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number, with the name in the certificate's place: no second look-up can differ."""
    resolve_to(monkeypatch, PUBLIC)
    requests = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(204)

    assert await deliver(answer) == callbacks.DELIVERED
    assert requests[0].url.host == PUBLIC
    assert requests[0].headers["Host"] == "example.com"
    assert requests[0].extensions["sni_hostname"] == "example.com"
    assert Webhook(OLD).verify(requests[0].content, dict(requests[0].headers)) == EVENT


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "delivered"), (410, "gone"), (302, "HTTP 302"), (404, "HTTP 404"), (500, "HTTP 500")],
)
async def test_the_status_decides(
    status: int, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect is not followed: it is a failure like any other."""
    resolve_to(monkeypatch, PUBLIC)
    headers = {"Location": "http://169.254.169.254/"}
    assert await deliver(lambda request: httpx.Response(status, headers=headers)) == outcome


@pytest.mark.anyio
async def test_trouble_is_told_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again later."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async def hang(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(3600)
        raise AssertionError

    resolve_to(monkeypatch, PUBLIC)
    assert "refused" in await deliver(refuse)
    assert await deliver(hang) == "no answer within 15 s"
    assert "callback_secrets" in await deliver(refuse, secrets=())


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.0.0.8", "198.18.0.1", "100.64.0.1", "fc00::1", "2001:2::1"]
)
def test_a_private_address_needs_no_help_of_python(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its versions call some of them global."""
    found = ip_address(address)
    monkeypatch.setattr(type(found), "is_global", True)
    assert not callbacks.is_public(found)


def test_a_try_is_followed_by_a_later_one() -> None:
    """Never at the same moment as all the others, and not for ever."""
    assert callbacks.next_try(callbacks.DELIVERED, 1) == ("delivered", 0.0)
    assert callbacks.next_try(callbacks.GONE, 3) == ("gone", 0.0)
    state, pause = callbacks.next_try("HTTP 503", 2)
    assert state == "due"
    assert 240 <= pause <= 360
    assert callbacks.next_try("HTTP 503", len(callbacks.PAUSES)) == ("given up", 0.0)
