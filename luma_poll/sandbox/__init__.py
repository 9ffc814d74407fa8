"""A simulated Luma Agents API, for tests and demos: the real one has no staging environment.

Needs the extra `luma-poll[sandbox]` (starlette, uvicorn).
"""

from luma_poll.sandbox.account_limits import DEFAULT_ACCOUNT, SubmissionRecord
from luma_poll.sandbox.app import Sandbox

__all__ = ["DEFAULT_ACCOUNT", "Sandbox", "SubmissionRecord"]
