"""Run by the gate on the installed wheel: the example serves its page and a generation."""

import os
import socket
import subprocess
import sys

import httpx

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
environ = {name: value for name, value in os.environ.items() if not name.startswith("LUMA_")}
app = subprocess.Popen(
    [sys.executable, "-I", "-m", "luma_poll.examples.fastapi_app"],
    env={**environ, "PORT": str(port)},
)
try:
    transport = httpx.HTTPTransport(retries=8)  # until it listens: backoff, 64 s in all
    with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}") as browser:
        assert 'data-mode="sandbox"' in browser.get("/").text
        fox = {"prompt": "a fox sandbox:duration=1"}
        submitted = browser.put("/orders/order-1", json=fox).raise_for_status()
        events = browser.get(submitted.json()["events"], timeout=30).text
        assert "completed" in events, events
finally:
    app.terminate()
    app.wait(30)
print("the example works")
