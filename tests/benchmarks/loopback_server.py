"""A server that costs next to nothing, so that a benchmark measures its client.

Every id is a generation that is processed until `duration` seconds after the first request, and
completed from then on. Prints its port, then serves on loopback until it is killed.

    python tests/benchmarks/loopback_server.py LATENCY DURATION
"""

import asyncio
import json
import math
import os
import sys

HEAD = (
    "HTTP/1.1 200 OK\r\n"
    "Date: Mon, 23 Nov 2026 08:00:00 GMT\r\n"
    "Content-Type: application/json\r\n"
    "X-API-Version: 2026-04-01\r\n"
    "X-Request-Id: 0b8f0cd0-65e1-4a3c-9a7b-9f7a0d6d6a11\r\n"
    "Content-Length: {length}\r\n\r\n"
)
OUTPUT = {
    "type": "image",
    "url": "https://storage.example.com/a.png?X-Amz-Date=20261123T080000Z&X-Amz-Expires=3600"
    "&X-Amz-Signature=5ec4e7",
}


def answer(generation_id: str, state: str) -> bytes:
    """The response for a generation in this state."""
    generation = {
        "id": generation_id,
        "created_at": "2026-11-23T08:00:00Z",
        "model": "uni-1",
        "state": state,
        "type": "image",
        "failure_code": None,
        "failure_reason": None,
        "output": [OUTPUT] if state == "completed" else [],
    }
    body = json.dumps(generation)
    return (HEAD.format(length=len(body)) + body).encode()


class Server(asyncio.Protocol):
    """One connection; requests have no body."""

    first_request = math.inf
    requests = 0

    def __init__(self, latency: float, duration: float) -> None:
        self.latency = latency
        self.duration = duration
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self.received = (self.received + data).split(b"\r\n\r\n")
        for head in heads:
            path = head.split(b" ", 2)[1].decode()
            asyncio.get_running_loop().call_later(self.latency, self.respond, path)

    def respond(self, path: str) -> None:
        now = asyncio.get_running_loop().time()
        Server.first_request = min(now - self.latency, Server.first_request)
        done = now - Server.first_request >= self.duration
        generation_id = path.rpartition("/")[2]
        self.transport.write(answer(generation_id, "completed" if done else "processing"))


async def serve(latency: float, duration: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Server(latency, duration), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # the first core is the client's
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    asyncio.run(serve(float(sys.argv[1]), float(sys.argv[2])))
