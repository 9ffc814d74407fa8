"""What the simulated storage holds and who may download it: small PNGs behind presigned URLs."""

import hmac
import struct
import zlib
from calendar import timegm
from collections.abc import Iterable
from hashlib import sha256
from time import gmtime, strftime, strptime
from urllib.parse import urlencode

SIZE = 64  # pixels, both ways
CELL = 8  # pixels, both ways

DATE_FORMAT = "%Y%m%dT%H%M%SZ"

Query = Iterable[tuple[str, str]]


def make_png(name: str) -> bytes:
    """A pattern of 64x64 pixels that is the same for the same name, and mirrored like a face."""
    digest = sha256(name.encode()).digest()
    ink, paper = digest[:3], bytes(255 - value // 4 for value in digest[3:6])
    rows = [_draw_row(bits, ink, paper) for bits in digest[6 : 6 + SIZE // CELL]]
    pixels = b"".join((b"\0" + row) * CELL for row in rows)  # 0: this line is not filtered
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)  # 8 bits each of R, G and B
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_pack_chunk(kind, data) for kind, data in chunks)


def _draw_row(bits: int, ink: bytes, paper: bytes) -> bytes:
    half = [(ink if bits >> bit & 1 else paper) * CELL for bit in range(SIZE // CELL // 2)]
    return b"".join(half + half[::-1])


def _pack_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def presign(key: bytes, path: str, *, timestamp: float, expires: int, nonce: int) -> str:
    """The query that lets anybody GET `path`, from the Unix time `timestamp` for some seconds.

    The fields are those of an S3 URL. The signature is simpler, and `nonce` makes it differ
    between two URLs of the same second.
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
    return urlencode({**fields, "X-Amz-Signature": _sign(key, "GET", path, fields.items())})


def is_genuine(key: bytes, method: str, path: str, query: Query) -> bool:
    """Whether `presign` made this query for this path, and for requests of this method."""
    fields = [(name, value) for name, value in query if name != "X-Amz-Signature"]
    given = [value for name, value in query if name == "X-Amz-Signature"]
    signature = _sign(key, method, path, fields)
    return len(given) == 1 and hmac.compare_digest(given[0].encode(), signature.encode())


def expiry_time(query: Query) -> int:
    """The Unix time when a genuine query expires."""
    fields = dict(query)
    return timegm(strptime(fields["X-Amz-Date"], DATE_FORMAT)) + int(fields["X-Amz-Expires"])


def _sign(key: bytes, method: str, path: str, fields: Query) -> str:
    text = "\n".join([method, path, urlencode(sorted(fields))])
    return hmac.new(key, text.encode(), sha256).hexdigest()
