"""The observers of a poller or a Runner, and the calls that tell them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TypeVar, cast

from luma_poll._arguments import shown
from luma_poll._logging import fields, logger
from luma_poll.errors import ConfigurationError, GenerationError, PollTimeoutError
from luma_poll.events import Event, Observer, Outcome, PollEnded, PollEvent, RunEvent
from luma_poll.models import Generation

T = TypeVar("T")


class Observers:
    """The observers of what begins from now on.

    Attributes:
        present: The observers, in the order in which they were added.
    """

    def __init__(self) -> None:
        self.present: tuple[Observer, ...] = ()

    def add(self, observer: Observer) -> Callable[[], None]:
        """Add an observer; return a function that removes it again.

        Raises:
            ConfigurationError: `observer` is not a function, or is async.
        """
        if not callable(observer) or is_async(observer):
            raise ConfigurationError(
                f"an observer must be a function (not async), not {shown(observer)}"
            )

        # Wrapped, so that a function that was added twice is removed once at a time.
        def added(event: Event) -> object:
            return observer(event)

        self.present += (added,)

        def stop() -> None:
            self.present = tuple(each for each in self.present if each is not added)

        return stop


def is_async(function: object) -> bool:
    """Return True for a coroutine function, and for an object whose `__call__` is one."""
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def tell(event: Event | RunEvent) -> None:
    """Tell the observers of a wait or run. An exception in one is logged and dropped."""
    of = event.run if isinstance(event, RunEvent) else event.wait
    for observer in of.observers:
        try:
            observer(cast(Event, event))
        except Exception as error:
            latest = getattr(event, "generation", None) or getattr(event, "answer", None)
            generation = latest if isinstance(latest, Generation) else None
            generation_id: str | None = getattr(of, "generation_id", None)
            if generation_id is None and generation is not None:
                generation_id = generation.id
            attempt = getattr(event, "attempt", None)
            logger.exception(
                "an observer raised; the wait for generation %s continues",
                generation_id,
                extra=fields(generation_id, generation=generation, attempt=attempt, error=error),
            )


def on_each_poll(on_poll: Callable[[PollEvent], object]) -> Observer:
    """Return an observer that calls `on_poll` after every poll."""

    def observer(event: Event) -> None:
        if isinstance(event, PollEnded) and event.answer is not None:
            answer = event.answer
            found, error = (answer, None) if isinstance(answer, Generation) else (None, answer)
            of = event.wait.generation_id
            on_poll(PollEvent(of, event.attempt, found, error, event.elapsed, event.next_delay))

    return observer


def only(kind: type[T], function: Callable[[T], object]) -> Observer:
    """Return an observer that calls the function with the events of one kind."""

    def observer(event: Event) -> None:
        if isinstance(event, kind):
            function(event)

    return observer


def outcome_of(generation: Generation | None, error: BaseException | None) -> Outcome:
    """Return the outcome of a wait that ended with this snapshot, or raised this error."""
    if error is None:
        is_failed = generation is not None and generation.state == "failed"
        return "failed" if is_failed else "completed"
    if isinstance(error, GenerationError):
        return "failed"
    if isinstance(error, PollTimeoutError):
        return "timeout"
    return "error" if isinstance(error, Exception) else "cancelled"
