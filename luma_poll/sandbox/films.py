"""A small MP4 made from a name: five seconds of one colour, in real H.264.

There is no encoder. The first block of 16x16 pixels is written as it is, all others are predicted
from their neighbours, and the frames after the first skip every block.
"""

import struct
from hashlib import sha256

SIDE = 64  # pixels, both ways
BLOCKS = (SIDE // 16) ** 2
SECONDS = 5  # and frames: one a second


def make_mp4(name: str) -> bytes:
    """Return a film that browsers play; the same name gives the same colour."""
    samples = [_length_prefixed(_first_frame(_colour_of(name)))]
    samples += [_length_prefixed(_still_frame(number)) for number in range(1, SECONDS)]
    kind = _box("ftyp", b"isom", _words(0x200), b"isomiso2avc1mp41")
    # The samples begin after the index, whose length does not depend on where they begin.
    start = len(kind) + len(_index(samples, 0)) + 8
    return kind + _index(samples, start) + _box("mdat", *samples)


def _colour_of(name: str) -> bytes:
    """Return luma and the two chromas, all too high to look like a start code."""
    return bytes(64 + value // 2 for value in sha256(name.encode()).digest()[:3])


# H.264: bits, in the order of its standard


def _ue(value: int) -> str:
    """Return an unsigned number in the Exp-Golomb code."""
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


def _unit(header: int, bits: str, tail: bytes = b"", rest: str = "") -> bytes:
    """Return a NAL unit: bits, bytes that are aligned, and bits again."""
    content = _packed(bits + "0" * (-len(bits) % 8)) + tail if tail else b""
    last = (rest if tail else bits) + "1"
    content += _packed(last + "0" * (-len(last) % 8))
    escaped = bytearray()
    for value in content:
        if value <= 3 and escaped[-2:] == b"\0\0":
            escaped.append(3)
        escaped.append(value)
    return bytes([header]) + bytes(escaped)


def _packed(bits: str) -> bytes:
    return int(bits, 2).to_bytes(len(bits) // 8) if bits else b""


def _sequence_set() -> bytes:
    side = _ue(SIDE // 16 - 1)
    # Set 0; four bits of frame number; order as decoded; one reference; no gaps; frames only.
    fields = _ue(0) + _ue(0) + _ue(2) + _ue(1) + "0" + side + side + "1" + "1" + "0" + "0"
    return _unit(0x67, f"{66:08b}{0xC0:08b}{10:08b}{fields}")  # Constrained Baseline, level 1


def _picture_set() -> bytes:
    # CAVLC, one slice group, one reference, no weights, QP 26; the deblocking can be switched off.
    return _unit(0x68, _ue(0) + _ue(0) + "0" + "0" + _ue(0) * 3 + "0" + "00" + _ue(0) * 3 + "100")


def _first_frame(colour: bytes) -> bytes:
    header = _ue(0) + _ue(7) + _ue(0) + "0000" + _ue(0) + "00" + _ue(0) + _ue(1)
    plain = bytes([colour[0]]) * 256 + bytes([colour[1]]) * 64 + bytes([colour[2]]) * 64
    row = SIDE // 16
    # Predicted: 16x16 as the mean of the neighbours, no QP change, no coefficients. The code for
    # "none" depends on the neighbours, among which a block that is written as it is counts as full.
    predicted = [
        _ue(3) + _ue(0) + _ue(0) + ("000011" if place in (1, row) else "1")
        for place in range(1, BLOCKS)
    ]
    return _unit(0x65, header + _ue(25), plain, "".join(predicted))


def _still_frame(number: int) -> bytes:
    header = _ue(0) + _ue(5) + _ue(0) + f"{number % 16:04b}" + "000" + _ue(0) + _ue(1)
    return _unit(0x41, header + _ue(BLOCKS))


# MP4: boxes in boxes


def _words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def _box(kind: str, *content: bytes) -> bytes:
    body = b"".join(content)
    return _words(len(body) + 8) + kind.encode() + body


def _length_prefixed(unit: bytes) -> bytes:
    return _words(len(unit)) + unit


def _index(samples: list[bytes], start: int) -> bytes:
    """Return the box that describes the samples and their places."""
    matrix = _words(0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    film = _words(0, 0, 0, 1000, SECONDS * 1000, 0x10000) + b"\1\0" + bytes(10) + matrix
    track = _words(7, 0, 0, 1, 0, SECONDS * 1000) + bytes(16) + matrix + _words(SIDE << 16) * 2
    language = b"\x55\xc4\0\0"  # "und"
    media = _words(0, 0, 0, 1, SECONDS) + language
    handler = _words(0, 0) + b"vide" + bytes(12) + b"\0"
    source = _box("dinf", _box("dref", _words(0, 1), _box("url ", _words(1))))
    tables = _box(
        "stbl",
        _box("stsd", _words(0, 1), _sample_entry()),
        _box("stts", _words(0, 1, len(samples), 1)),
        _box("stss", _words(0, 1, 1)),
        _box("stsc", _words(0, 1, 1, len(samples), 1)),
        _box("stsz", _words(0, 0, len(samples), *map(len, samples))),
        _box("stco", _words(0, 1, start)),
    )
    information = _box("minf", _box("vmhd", _words(1, 0, 0)), source, tables)
    contents = _box("mdia", _box("mdhd", media), _box("hdlr", handler), information)
    ending = bytes(24) + _words(2)
    return _box("moov", _box("mvhd", film + ending), _box("trak", _box("tkhd", track), contents))


def _sample_entry() -> bytes:
    sequence, picture = _sequence_set(), _picture_set()
    sets = b"\1\x42\xc0\x0a\xff\xe1" + struct.pack(">H", len(sequence)) + sequence
    sets += b"\1" + struct.pack(">H", len(picture)) + picture
    size = struct.pack(">HH", SIDE, SIDE) + _words(0x480000, 0x480000, 0)
    entry = bytes(6) + b"\0\1" + bytes(16) + size + b"\0\1" + bytes(32) + b"\0\x18\xff\xff"
    return _box("avc1", entry, _box("avcC", sets))
