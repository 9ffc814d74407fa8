"""Which request is this? Two that differ are never one, and one is not two for its signature."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from luma_poll._api.request_body import read_params
from luma_poll._journal.fingerprint import fingerprint, older_fingerprint, readable

FILE = "https://img.example.com/in.png"


def of(url: str) -> str:
    return fingerprint({"prompt": "a fox", "source": {"url": url}})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("?X-Amz-Date=1&X-Amz-Expires=60&X-Amz-Signature=a", "?X-Amz-Date=2&X-Amz-Signature=b"),
        ("?X-Goog-Date=1&X-Goog-Signature=a", "?X-Goog-Date=2&X-Goog-Signature=b"),
        ("?AWSAccessKeyId=a&Expires=1&Signature=a", "?AWSAccessKeyId=b&Expires=2&Signature=b%3D"),
        ("?Expires=1&Signature=a&Key-Pair-Id=K", "?Policy=p&Signature=b&Key-Pair-Id=L"),
        ("?sv=2024&se=1&sr=b&sp=r&sig=a%2B", "?sv=2025&se=2&sr=b&sp=r&sig=b"),
        ("?token=a", "?token=b"),
        ("?id=7&token=a&expires=1", "?id=7&token=b&expires=2"),
        ("?id=7&sig=a", "?sig=b&id=7"),
        ("?TOKEN=a", ""),
    ],
)
def test_a_url_that_is_signed_again_is_the_same(one: str, other: str) -> None:
    """By each of the usual ways to sign: those parameters alone are dropped."""
    assert of(FILE + one) == of(FILE + other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("?id=1&token=a", "?id=2&token=a"),
        ("?token=a&id=1", "?token=a&id=2"),
        ("?id=1&X-Amz-Signature=a", "?id=2&X-Amz-Signature=a"),
        ("?versionId=1&Signature=a", "?versionId=2&Signature=a"),
        ("?se=1", "?se=2"),
        ("?se=1&token=a", "?se=2&token=a"),
        ("?policy=1", "?policy=2"),
        ("?expires=1", "?expires=2"),
        ("?mytoken=1", "?mytoken=2"),
        ("?id=1", "?id=2"),
        ("?1", "?2"),
        ("?token=a&1", "?token=a&2"),
        ("?token=a#1", "?token=a#2"),
    ],
)
def test_a_parameter_that_may_name_the_file_counts(one: str, other: str) -> None:
    """Otherwise the picture of the other file would be returned without a word."""
    assert of(FILE + one) != of(FILE + other)


names = st.sampled_from(["id", "page", "se", "v", "token", "sig", "Signature", "X-Amz-Date"])


@given(st.lists(st.tuples(names, st.text("abc%2F_-", max_size=4)), max_size=5), st.text("xyz"))
def test_a_new_signature_changes_nothing_and_an_id_does(
    query: list[tuple[str, str]], signature: str
) -> None:
    """In any order, and beside any other parameter."""

    def url(signed: str, number: int) -> str:
        parts = [f"{name}={value}" for name, value in query]
        return f"{FILE}?{'&'.join([*parts, f'sig={signed}', f'image={number}'])}"

    assert of(url("a", 1)) == of(url(signature, 1))
    assert of(url("a", 1)) != of(url("a", 2))


@given(st.text("abc ()',.\"", min_size=1, max_size=8), st.text("abc ()',.\"", min_size=1))
def test_a_prompt_around_a_signed_url_counts(one: str, other: str) -> None:
    """A signature ends before what cannot be one."""
    assume(one != other)

    def prompt(tail: str) -> str:
        return fingerprint({"prompt": f"like (https://example.com/a?sig=s) {tail}"})

    assert prompt(one) != prompt(other)


def test_the_digest_of_an_ordinary_presigned_url_is_that_of_the_first_version() -> None:
    """So that its entries are found by their keys."""
    params = {"prompt": "x", "source": {"url": f"{FILE}?X-Amz-Date=1&X-Amz-Signature=a"}}
    assert fingerprint(params) == older_fingerprint(params)


def test_media_are_known_by_their_digest() -> None:
    """And never stored."""
    media = [b"\x89PNG\r\n\x1a\n" + bytes([last]) for last in (1, 1, 2)]
    one, same, other = (read_params({"prompt": "x", "source": source}) for source in media)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert readable(one)["source"] == {
        "sha256": sha256(media[0]).hexdigest(),
        "media_type": "image/png",
        "bytes": 9,
    }


def test_what_is_stored_for_people_has_neither_data_nor_secrets() -> None:
    """A long prompt is cut, an image in Base64 is left out."""
    params: dict[str, Any] = {
        "prompt": "x" * 3000,
        "source": {"data": "aGVsbG8=" * 1000, "media_type": "image/png"},
        "image_ref": ({"url": f"{FILE}?sig=5ec4e7"}, {"url": "https://u:p@example.com/"}),
    }
    found = readable(params)
    assert found["prompt"] == "x" * 2000 + "... (3,000 characters)"
    assert found["source"] == {"data": "... (8,000 characters)", "media_type": "image/png"}
    assert "5ec4e7" not in str(found)
