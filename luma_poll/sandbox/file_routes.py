"""The routes of `/files`, and of the storage to which uploads go."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from luma_poll.sandbox.clock import SandboxClock
from luma_poll.sandbox.faults import MISBEHAVE, Faults, Misbehave
from luma_poll.sandbox.object_store import refused_url, xml_error
from luma_poll.sandbox.refusals import RefusedError
from luma_poll.sandbox.stored_files import (
    INGEST,
    PURPOSES,
    STATES,
    StoredFile,
    check_choice,
    head_of,
    page_size,
    parse_file,
)


class FileRoutes:
    """The files of all accounts of a sandbox.

    Args:
        authenticate: Returns the client that sent a request, or raises.
        clock: The sandbox's clock.
        sign: Returns a URL for a method and a path, signed at a given time.
        speed: How many times faster than real ones the files become ready.
        random: The source of their ids.
        calls: Counts the requests.
        signing_key: The key that signs URLs.
        url_expires: Seconds for which a URL is valid.
        faults: The faults of answers to polls.
        storage_faults: The faults of uploads.
    """

    def __init__(
        self,
        *,
        authenticate: Callable[[Request], str],
        clock: SandboxClock,
        sign: Callable[[Request, str, str, float], str],
        speed: float,
        random: Random,
        calls: Counter[str],
        signing_key: bytes,
        url_expires: int,
        faults: Faults,
        storage_faults: Faults,
    ) -> None:
        self._authenticate = authenticate
        self._clock = clock
        self._sign = sign
        self._speed = speed
        self._random = random
        self._calls = calls
        self._signing_key = signing_key
        self._url_expires = url_expires
        self._faults = faults
        self._storage_faults = storage_faults
        self._files: dict[str, StoredFile] = {}

    @property
    def routes(self) -> list[Route]:
        """The routes, in the order in which they are tried."""
        return [
            Route("/v1/files", self._create, methods=["POST"]),
            Route("/v1/files", self._list, methods=["GET"]),
            Route("/v1/files/{id}", self._get, methods=["GET"]),
            Route("/v1/files/{id}", self._delete, methods=["DELETE"]),
            Route("/v1/files/{id}/complete", self._complete, methods=["POST"]),
            Route("/uploads/{id}", self._put, methods=["PUT"]),
        ]

    def ready(self, client: str, file_id: str, now: float) -> StoredFile:
        """Return a file that a generation may use.

        Raises:
            ValueError: There is no such file, or it is not ready; the message says which.
        """
        file = self._files.get(file_id)
        if file is None or file.client != client:
            raise ValueError("file not found")
        state = self._state(file, now)
        if state != "ready":
            raise ValueError(f"file is not ready (state: {state})")
        return file

    async def _create(self, request: Request) -> Response:
        self._calls["POST /files"] += 1
        client = self._authenticate(request)
        if request.headers.get("Content-Type", "").startswith("multipart/"):
            raise HTTPException(415, "The sandbox takes presigned uploads only: send JSON")
        fields, expires = _checked(parse_file, await request.body())
        now = self._clock.now()
        file = StoredFile(
            id=str(UUID(int=self._random.getrandbits(128), version=4)),
            client=client,
            created=now,
            fields=fields,
            expires=expires,
            ready_after=INGEST / self._speed,
        )
        self._files[file.id] = file
        record = self._describe(file, now)
        upload = {
            "url": self._sign(request, "PUT", f"/uploads/{file.id}", now),
            "method": "PUT",
            "headers": {"Content-Type": file.media_type},
            "expires_at": _date(self._clock.timestamp(now) + self._url_expires),
        }
        answer = {"id": file.id, "state": record["state"], "file": record, "upload": upload}
        return _json(201, answer)

    async def _list(self, request: Request) -> Response:
        self._calls["GET /files"] += 1
        client = self._authenticate(request)
        query, now = request.query_params, self._clock.now()
        size = _checked(page_size, query.get("limit"))
        for name, choices in (("purpose", PURPOSES), ("state", STATES)):
            if name in query:
                _checked(check_choice, name, query[name], choices)
        found = [
            record
            for file in reversed(self._files.values())
            if file.client == client
            for record in [self._describe(file, now)]
            if query.get("purpose", record["purpose"]) == record["purpose"]
            and (
                query["state"] == record["state"]
                if "state" in query
                else record["state"] != "deleted"
            )
        ]
        if cursor := query.get("cursor"):
            places = [place for place, record in enumerate(found) if record["id"] == cursor]
            found = found[places[0] + 1 :] if places else []
        page, more = found[:size], len(found) > size
        return _json(
            200,
            {"data": page, "has_more": more, "next_cursor": page[-1]["id"] if more else None},
        )

    async def _get(self, request: Request) -> Response:
        self._calls["GET /files/{id}"] += 1
        file = self._found(request)
        answer = _json(200, self._describe(file, self._clock.now()))
        return await self._faults.spoil(answer, _misbehave(request))

    async def _delete(self, request: Request) -> Response:
        self._calls["DELETE /files/{id}"] += 1
        file = self._found(request)
        file.deleted = self._clock.now() if file.deleted is None else file.deleted
        return Response(status_code=204)

    async def _complete(self, request: Request) -> Response:
        self._calls["POST /files/{id}/complete"] += 1
        file, now = self._found(request), self._clock.now()
        if self._state(file, now) == "deleted":
            raise HTTPException(409, "File has been deleted")
        if file.head is None:
            raise HTTPException(409, "File has not been uploaded")
        file.completed = now if file.completed is None else file.completed
        return _json(200, self._describe(file, now))

    async def _put(self, request: Request) -> Response:
        self._calls["PUT /uploads/{id}"] += 1
        now = self._clock.timestamp(self._clock.now())
        path = f"/uploads/{request.path_params['id']}"
        if refusal := refused_url(request, path, self._signing_key, now):
            return refusal
        file = self._files[request.path_params["id"]]
        if request.headers.get("Content-Type") != file.media_type:
            return xml_error(403, "SignatureDoesNotMatch", "Content-Type is part of the signature.")
        head, received = b"", 0
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                head, received = head_of(head, chunk), received + len(chunk)
                if received > file.size:
                    return xml_error(400, "EntityTooLarge", "More bytes than were announced.")
        if received < file.size:
            return xml_error(400, "IncompleteBody", "Fewer bytes than were announced.")
        misbehave = _misbehave(request)
        fault = self._storage_faults.take(misbehave is not None)
        if fault is not None and fault.ending and misbehave is not None:
            misbehave(replace(fault, after=None))
        replacement = fault and fault.response()
        if replacement is None:
            file.head = head
        return replacement or Response(status_code=200)

    def _found(self, request: Request) -> StoredFile:
        client = self._authenticate(request)
        file = self._files.get(request.path_params["id"])
        if file is None or file.client != client:
            raise HTTPException(404, "File not found")
        return file

    def _state(self, file: StoredFile, now: float) -> str:
        return file.state_at(now, self._clock.timestamp(now))

    def _describe(self, file: StoredFile, now: float) -> dict[str, Any]:
        state = self._state(file, now)
        deleted = file.expires if file.deleted is None else self._clock.timestamp(file.deleted)
        return {
            "id": file.id,
            "created_at": _date(self._clock.timestamp(file.created)),
            "mime_type": file.media_type,
            "purpose": file.fields.get("purpose", "input"),
            "size_bytes": file.size,
            "state": state,
            "deleted_at": _date(deleted) if state == "deleted" and deleted is not None else None,
            "expires_at": None if file.expires is None else _date(file.expires),
            "failure_reason": file.failure if state == "failed" else None,
            "filename": file.fields.get("filename"),
            "user_id": file.fields.get("user_id"),
        }


def _checked(check: Callable[..., object], *arguments: object) -> Any:
    try:
        return check(*arguments)
    except RefusedError as refusal:
        raise HTTPException(refusal.status, refusal.detail) from None


def _misbehave(request: Request) -> Misbehave | None:
    misbehave: Misbehave | None = request.scope.get("state", {}).get(MISBEHAVE)
    return misbehave


def _date(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(status: int, content: Mapping[str, object]) -> Response:
    return Response(json.dumps(content), status, None, "application/json")
