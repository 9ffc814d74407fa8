"""The public SyncRunner: a runner for threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, Unpack

from luma_poll._api.parameters import CreateParams
from luma_poll._arguments import USE_DEFAULT, UseDefault
from luma_poll._journal.journal import Journal
from luma_poll._running.requests import AnyRequest
from luma_poll._running.run_result import RunResult
from luma_poll._running.runner import Runner
from luma_poll._sync.call import SyncIterator
from luma_poll._sync.sync_poller import SyncPoller
from luma_poll.errors import ConfigurationError
from luma_poll.events import RunSubmitted
from luma_poll.models import Generation


class SyncRunner:
    """A `Runner` for threads: submits as many at once as the account allows, and waits for them.

    Make one for each process and share it: what it learns of the account holds for all threads:

        with SyncRunner() as runner:
            for result in runner.run_all(["a red fox", "a grey owl"]):
                print(result.request, result.error or result.outputs[0].url)

    Args:
        poller: A `SyncPoller`, whose client, limits and event loop it shares: closing the poller
            ends the runs too, closing the runner does nothing. By default it has its own, with a
            schedule like that of `Runner`.
        auth_token: The API key, where there is no poller; by default that of the environment.
        base_url: The API's address, where there is no poller; by default LUMA_BASE_URL.
        max_running: Generations under way at once; None for as many as the account allows, which
            is learned from its answers.
        max_attempts: How often one request may be submitted in all. With 2 or more, a request
            whose generation failed with a retryable error is submitted again, and billed anew.
        max_submissions: Submissions of this runner in all; None for no limit.
        journal: Keeps track of the submissions, so that the next process with the same file
            continues what this one has begun, and submits nothing twice. Close the runner first.
        on_submit: Called with a `RunSubmitted` as soon as there is an id, in the
            thread of the event loop, which it holds up while it runs.

    Raises:
        ConfigurationError: An argument is unusable. Each method raises it where an event loop runs
            in the thread, after `close`, and after a fork of the process.
    """

    def __init__(
        self,
        poller: SyncPoller | None = None,
        *,
        auth_token: str | None = None,
        base_url: str | None = None,
        max_running: int | None = None,
        max_attempts: int = 1,
        max_submissions: int | None = None,
        journal: Journal | None = None,
        on_submit: Callable[[RunSubmitted], object] | None = None,
    ) -> None:
        if poller is not None and (auth_token is not None or base_url is not None):
            raise ConfigurationError("auth_token and base_url are those of the poller: leave them")
        self._is_owner = poller is None
        if poller is None:
            poller = SyncPoller(auth_token, base_url=base_url)
            poller._portal.owner = "SyncRunner"
        self._sync = poller
        self._runner = Runner(
            poller._client,
            None if self._is_owner else poller._poller,
            max_running=max_running,
            max_attempts=max_attempts,
            max_submissions=max_submissions,
            journal=journal,
            on_submit=on_submit,
        )

    def __repr__(self) -> str:
        return f"Sync{self._sync._portal.read(lambda: repr(self._runner))}"

    def __enter__(self) -> Self:
        self._sync.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the runs that are under way, in other threads too, with a `ConfigurationError`.

        A submission under way comes to its end first, within 30 s; `submitted` has the ids of what
        still runs. Then the connections, the event loop and its thread end, unless they are those
        of a `SyncPoller`. Harmless if it is closed.
        """
        if self._is_owner:
            self._sync.close()

    @property
    def submitted(self) -> dict[str, AnyRequest]:
        """The ids whose end has not been seen, with their requests: `Runner.submitted`.

        After an interruption these may still be running, and be billed: wait for them by id.
        """
        return self._sync._portal.read(lambda: self._runner.outstanding)

    def run(
        self,
        prompt: str,
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        key: str | None = None,
        **params: Unpack[CreateParams],
    ) -> Generation:
        """Submit a generation when there is room for it, and wait for its end: `Runner.run`.

            generation = runner.run("a red fox", model="uni-1", timeout=300)
            print(generation.output[0].url)

        Ctrl-C lets a submission under way end first, so that its id is in `submitted`.

        Args:
            prompt: The prompt.
            timeout: Seconds from the first accepted submission, over all attempts; None for no
                limit; by default that of the poller. Waiting for room does not count.
            key: A name of yours for the request, such as an order's number; it is not sent. With a
                journal, a key is submitted once.
            params: The API's other parameters: `luma_poll.typing.CreateParams`.

        Returns:
            The completed generation.

        Raises:
            GenerationError: It failed; the class says why.
            PollTimeoutError: The deadline came first. It may still finish: wait again by id.
            SubmissionLimitError: `max_submissions` is reached; nothing was sent.
            SubmissionUnknownError: A process died while it submitted this key; nothing was sent.
            JournalError: The journal cannot be written; nothing was sent.
            APIError: It could not be submitted, or waited for. `may_have_been_accepted` is true of
                a failed submission that may be running; it is not repeated.
            ConfigurationError: An argument is unusable, or the runner was closed meanwhile.
        """
        return self._sync._call(
            "await runner.run(...)",
            lambda _: self._runner.run(prompt, timeout=timeout, key=key, **params),
        )

    def run_all(
        self,
        requests: Iterable[AnyRequest],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
    ) -> list[RunResult]:
        """Run many requests, and return a result for each, in the order given: `Runner.run_all`.

        `as_completed` is the better choice where an interruption must not lose the results so far.

        Args:
            requests: As for `as_completed`.
            timeout: As for `run`, for each.

        Returns:
            The results, in the order of `requests`. A failure is the result of its own.

        Raises:
            ConfigurationError: An argument is unusable, or the runner was closed meanwhile.
        """
        self._runner.as_completed(requests, timeout=timeout)  # checks them
        return self._sync._call(
            "await runner.run_all(...)",
            lambda call: self._runner.run_all(call.pull(requests), timeout=timeout),
        )

    def as_completed(
        self,
        requests: Iterable[AnyRequest],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
    ) -> SyncIterator[RunResult]:
        """Run many requests, and yield a result for each as it ends: `Runner.as_completed`.

            for result in runner.as_completed(prompts):
                print(result.request, result.ok)

        Leaving the loop stops submitting and cancels the waits; what was submitted continues, and
        `submitted` has the ids.

        Args:
            requests: Prompts, or mappings of the parameters of `create`: any iterable. It is read
                in this thread, one by one, as there is room to submit; not while a result is
                processed.
            timeout: As for `run`, for each.

        Returns:
            An iterator over the results. The first submission is made when one is asked for.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        self._runner.as_completed(requests, timeout=timeout)  # checks them
        return self._sync._iterate(
            "async with runner.as_completed(...) as results",
            lambda call: self._runner.as_completed(call.pull(requests), timeout=timeout),
        )
