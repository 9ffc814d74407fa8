import pytest

from luma_poll._downloads import output


@pytest.fixture
def soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between tries; in virtual time every pause is short."""
    if "anyio_backend" not in request.fixturenames:
        monkeypatch.setattr(output, "backoff", lambda tries: 0.01)
