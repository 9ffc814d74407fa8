# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Uses that type checkers must refuse: an ignore that is not needed is an error. Never run."""

from luma_poll import LumaClient, Poller, PollEvent, PollResult, Runner
from luma_poll.sync import Session
from luma_poll.typing import CreateParams, Schedule

ID = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"


async def submitting(client: LumaClient) -> None:
    await client.generations.create("a fox", modle="uni-1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.generations.create("a fox", web_search="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generations.create("a fox", source="https://a.example")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generations.create("a fox", video={"lenght": "5s"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generations.create(7, model="uni-1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


params: CreateParams = {"promt": "a fox"}  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportAssignmentType]


async def waiting(poller: Poller) -> None:
    await poller.wait(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await poller.wait(ID, timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await poller.wait(ID, timeout=...)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await poller.wait(ID, 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await poller.wait_all(ID, limit=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async for result in poller.as_completed([ID]):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        assert result


async def running(runner: Runner) -> None:
    await runner.run("a fox", modle="uni-1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await runner.run_all("a fox", 60)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def on_poll(event: PollEvent) -> None: ...


def wrong_pollers(client: LumaClient) -> None:
    Poller(client, on_poll=on_poll)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Poller(client, wait=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Poller(client.generations)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Poller(client, 600)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]


def without_an_event_loop(session: Session, client: LumaClient) -> None:
    Session(client)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session.wait(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session.run("a fox", modle="uni-1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def raising(result: PollResult) -> None:
    raise result.error  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]


def frozen(result: PollResult, event: PollEvent) -> None:
    result.error = None  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    event.attempt = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


schedule: Schedule = "every 2 s"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
