"""Presigned URLs like those of S3: a signature in the query, valid for some seconds."""

import hmac
from calendar import timegm
from collections.abc import Iterable
from hashlib import sha256
from time import gmtime, strftime, strptime
from urllib.parse import urlencode

DATE_FORMAT = "%Y%m%dT%H%M%SZ"

Query = Iterable[tuple[str, str]]


def presign(
    key: bytes, path: str, *, method: str = "GET", timestamp: float, expires: int, nonce: int
) -> str:
    """Return the query that lets anyone use `path` for `expires` seconds from `timestamp` on.

    The fields are those of an S3 URL; the signature is simpler. `nonce` makes two URLs of the same
    second differ.
    """
    date = strftime(DATE_FORMAT, gmtime(timestamp))
    fields = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"SANDBOX/{date[:8]}/us-east-1/s3/aws4_request",
        "X-Amz-Date": date,
        "X-Amz-Expires": str(expires),
        "X-Amz-SignedHeaders": "host",
        "nonce": str(nonce),
    }
    return urlencode({**fields, "X-Amz-Signature": _sign(key, method, path, fields.items())})


def is_genuine(key: bytes, method: str, path: str, query: Query) -> bool:
    """Return True if `presign` made this query for this method and path."""
    fields = [(name, value) for name, value in query if name != "X-Amz-Signature"]
    given = [value for name, value in query if name == "X-Amz-Signature"]
    signature = _sign(key, method, path, fields)
    return len(given) == 1 and hmac.compare_digest(given[0].encode(), signature.encode())


def expiry_time(query: Query) -> int:
    """Return the Unix time when a genuine query expires."""
    fields = dict(query)
    return timegm(strptime(fields["X-Amz-Date"], DATE_FORMAT)) + int(fields["X-Amz-Expires"])


def _sign(key: bytes, method: str, path: str, fields: Query) -> str:
    text = "\n".join([method, path, urlencode(sorted(fields))])
    return hmac.new(key, text.encode(), sha256).hexdigest()
