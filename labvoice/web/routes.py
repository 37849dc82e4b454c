"""The HTTP service's routes: each checks the key, asks the backend, counts and answers."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from livekit.protocol.webhook import WebhookEvent
from opentelemetry import trace
from prometheus_client import CONTENT_TYPE_LATEST

from labvoice.dispatch.strategies import STRATEGIES, StrategyName, ahead_lifetime_s
from labvoice.errors import DispatchError, LabvoiceError
from labvoice.protocol.tracing import context_of, current_traceparent, end_span, start_span
from labvoice.protocol.vocabulary import AGENT_TURN_STAGES, OUTCOMES, TURN_MARKS
from labvoice.web import models as m
from labvoice.web.backend import Backend
from labvoice.web.calls import Calls, Measured
from labvoice.web.errors import body_of, status_of
from labvoice.web.metrics import Metrics
from labvoice.web.security import SESSION_LIFETIME_S, Gate, Principal, cookie_name

_OFFERED: Final[tuple[StrategyName, ...]] = ("concurrent", "sequential", "token", "ahead")
"""What `/debug` offers, the first one chosen."""
_MAX_EVENTS: Final = 1000
_TRACED: Final = frozenset({"connection", "voice_to_voice"})
"""Stages of a reported call that become spans of its trace."""

tracer = trace.get_tracer("labvoice.web")

router = APIRouter()
_bearer = HTTPBearer(auto_error=False, description="A key of the service.")


@dataclass
class Service:
    """What every route needs."""

    backend: Backend
    gate: Gate
    metrics: Metrics
    secure: bool = False  # whether a proxy shows it under https
    calls: Calls = field(default_factory=Calls)
    events: OrderedDict[str, None] = field(default_factory=OrderedDict)


async def _service(request: Request) -> Service:  # async, or it is called in a thread
    service: Service = request.app.state.service
    return service


def may(permission: m.Permission) -> Callable[..., Awaitable[Principal]]:
    """Returns the dependency that lets only keys with a permission pass."""

    async def admit(
        request: Request,
        service: Annotated[Service, Depends(_service)],
        _: Annotated[Any, Security(_bearer)],
    ) -> Principal:
        principal = service.gate.admit(request, permission)
        request.state.facts["key"] = principal.name
        return principal

    return admit


_ALWAYS: Final = (400, 413, 421, 422, 429, 500)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": m.ErrorAnswer} for status in (*statuses, *_ALWAYS)}


_KEYED: Final = (401, 403)
_SERVER: Final = (502, 504)
Dispatching = Annotated[Principal, Depends(may("dispatch"))]
Reading = Annotated[Principal, Depends(may("read"))]
TokenTaking = Annotated[Principal, Depends(may("token"))]
Administering = Annotated[Principal, Depends(may("admin"))]
TheService = Annotated[Service, Depends(_service)]


@router.post(
    "/api/dispatch-agent",
    tags=["dispatch"],
    responses={
        **_errors(*_KEYED, *_SERVER),
        **{
            status: {"model": m.DispatchFailure | m.ErrorAnswer}
            for status in (404, 409, 422, 502, 503, 504)
        },
    },
)
async def dispatch_agent(
    body: m.DispatchRequest, request: Request, service: TheService, _: Dispatching
) -> m.DispatchAnswer:
    """Puts exactly one agent into a room and answers when it is there; asking twice makes one.

    Needs the permission `dispatch`.
    """
    arrived_s = time.monotonic()
    agent_name = body.agent_name or service.backend.agent_name
    facts = request.state.facts
    facts |= {"room": body.room, "agent_name": agent_name}
    try:
        done = await service.backend.dispatch(body, current_traceparent())
    except LabvoiceError as error:
        outcome = error.outcome if isinstance(error, DispatchError) else "error"
        facts["outcome"] = outcome
        service.metrics.dispatches.labels(outcome).inc()
        if not isinstance(error, DispatchError):
            raise
        facts["dispatch_id"] = " ".join(error.dispatch_ids)
        failure = m.DispatchFailure(
            success=False,
            room=body.room,
            message=body_of(error)["error"]["message"],
            dispatch_id=error.dispatch_ids[-1] if error.dispatch_ids else "",
            room_existed=False,
            agent_name=agent_name,
            outcome=outcome,
            marks={},
            clock=m.Clock(answered_s=time.monotonic() - arrived_s),
            error=m.ErrorFacts(**body_of(error)["error"]),
        )
        return JSONResponse(failure.model_dump(), status_of(error))  # type: ignore[return-value]
    confirmed_s = time.monotonic()
    facts |= {"outcome": "ok", "dispatch_id": done.dispatch_id, "job_id": done.job_id}
    service.metrics.dispatches.labels("ok").inc()
    marks = {name: at_s - arrived_s for name, at_s in done.marks.items()}
    if done.attempts:
        requested_s = done.marks["dispatch_requested"]
        stages = service.metrics.stages
        stages.labels("dispatch").observe(done.marks["dispatch_acknowledged"] - requested_s)
        stages.labels("join").observe(confirmed_s - requested_s)
    facts_of_dispatch = asdict(done) | {
        "marks": {**marks, "agent_visible": confirmed_s - arrived_s}
    }
    return m.DispatchAnswer(
        success=True,
        message=f"{agent_name!r} is in room {body.room!r}",
        outcome="ok",
        clock=m.Clock(answered_s=time.monotonic() - arrived_s),
        **facts_of_dispatch,
    )


@router.delete(
    "/api/dispatches/{dispatch_id}",
    tags=["dispatch"],
    responses=_errors(*_KEYED, *_SERVER, 404),
)
async def delete_dispatch(
    dispatch_id: m.DispatchId, request: Request, service: TheService, _: Dispatching
) -> m.DeletedAnswer:
    """Deletes a dispatch, which ends its agent. Needs the permission `dispatch`."""
    request.state.facts["dispatch_id"] = dispatch_id
    room = await service.backend.delete_dispatch(dispatch_id)
    request.state.facts["room"] = room
    return m.DeletedAnswer(dispatch_id=dispatch_id, room=room)


@router.post("/api/token", tags=["calls"], responses=_errors(*_KEYED, *_SERVER, 409))
async def token(
    body: m.TokenRequest, request: Request, service: TheService, who: TokenTaking
) -> m.TokenAnswer:
    """Issues a token for one room and identity, for minutes. Needs the permission `token`.

    The request may have labvoice's names or LiveKit's standard ones; the answer has both.
    """
    if body.dispatches:
        who.require("dispatch")
    answer = await service.backend.token(body, current_traceparent())
    request.state.facts |= {"room": answer.room, "identity": answer.identity}
    service.metrics.tokens.inc()
    return answer


@router.get("/api/lab", tags=["lab"], responses=_errors(*_KEYED))
async def lab(service: TheService, _: Reading) -> m.LabAnswer:
    """Says what the lab is set to and which names reports use. Needs the permission `read`."""
    lifetime_s = ahead_lifetime_s(service.backend.idle_timeout_s)
    return m.LabAnswer(
        agent_name=service.backend.agent_name,
        livekit_url=service.backend.media_url,
        strategies=[
            m.StrategyFacts(name=each.name, title=each.title, when=each.when, lifetime_s=lifetime_s)
            for each in map(STRATEGIES.__getitem__, _OFFERED)
        ],
        marks=list(m.CONNECTION_MARKS),
        turn_marks=list(TURN_MARKS),
        turn_metrics=list(AGENT_TURN_STAGES),
        outcomes=list(OUTCOMES),
    )


@router.get("/api/agents", tags=["lab"], responses=_errors(*_KEYED, *_SERVER))
async def agents(service: TheService, _: Reading) -> m.AgentsAnswer:
    """Lists the Letta agents, or says why there are none. Needs the permission `read`."""
    return await service.backend.agents()


@router.get("/api/rooms", tags=["lab"], responses=_errors(*_KEYED, *_SERVER))
async def rooms(service: TheService, _: Reading) -> m.RoomsAnswer:
    """Lists rooms, who is in them, and their dispatches. Needs the permission `read`."""
    return m.RoomsAnswer(rooms=await service.backend.rooms())


@router.get("/api/workers", tags=["lab"], responses=_errors(*_KEYED))
async def workers(service: TheService, _: Reading) -> m.WorkersAnswer:
    """Lists the workers that answer, and their load. Needs the permission `read`."""
    found = await service.backend.workers()
    fields = set(m.WorkerFacts.model_fields)
    return m.WorkersAnswer(
        livekit_url=service.backend.media_url,
        workers=[
            m.WorkerFacts(**{name: value for name, value in vars(w).items() if name in fields})
            for w in found
        ],
    )


@router.post("/api/rooms/{room}/clean", tags=["lab"], responses=_errors(*_KEYED, *_SERVER, 404))
async def clean(
    room: m.RoomName, request: Request, service: TheService, _: Administering
) -> m.CleanAnswer:
    """Removes agents and dispatches from a room, never a human. Needs the permission `admin`."""
    request.state.facts["room"] = room
    return await service.backend.clean(room)


@router.post("/api/diagnose", tags=["lab"], responses=_errors(*_KEYED, *_SERVER))
async def diagnose(service: TheService, _: Dispatching) -> m.ReadyAnswer:
    """Checks everything, and dispatches into a scratch room. Needs the permission `dispatch`."""
    return _readiness(await service.backend.diagnose())


@router.get("/api/calls/{call_id}", tags=["calls"], responses=_errors(*_KEYED, 404))
async def get_call(call_id: m.CallId, service: TheService, _: Reading) -> m.CallAnswer:
    """Returns what a page reported of its call. Needs the permission `read`."""
    return service.calls.get(call_id)


@router.post("/api/calls/{call_id}", tags=["calls"], responses=_errors(*_KEYED, 409))
async def record_call(
    call_id: m.CallId,
    body: m.CallReport,
    request: Request,
    service: TheService,
    who: TokenTaking,
) -> m.CallAnswer:
    """Takes what a page measured of its call; may be repeated. Needs the permission `token`."""
    request.state.facts |= {"room": body.room, "call_id": call_id, "dispatch_id": body.dispatch_id}
    new = service.calls.record(call_id, who.name, body)
    for one in new:
        service.metrics.stages.labels(one.stage).observe(one.seconds)
    if body.sent_s is not None:
        _trace(new, time.time() - body.sent_s, request.headers.get("traceparent"))
    return service.calls.get(call_id)


def _trace(new: list[Measured], click_s: float, traceparent: str | None) -> None:
    """Makes spans of what a page measured, in the trace that began with its click."""
    context = context_of(traceparent)
    if not trace.get_current_span(context).get_span_context().is_valid:
        return
    for one in new:
        if one.stage in _TRACED and one.start_s is not None:
            start_s = click_s + one.start_s
            end_span(start_span(tracer, one.stage, start_s, context), start_s + one.seconds)


@router.post(
    "/api/webhook",
    tags=["livekit"],
    responses=_errors(401),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/webhook+json": {"schema": {"type": "object"}}},
        }
    },
)
async def webhook(request: Request, service: TheService) -> m.WebhookAnswer:
    """Takes a webhook of the LiveKit server; LiveKit's own signature is what admits it."""
    text = (await request.body()).decode("utf-8", "replace")
    event: WebhookEvent = service.backend.verify_webhook(
        text, request.headers.get("authorization", "")
    )
    request.state.facts |= {"room": event.room.name, "livekit_event": event.event}
    seen = event.id in service.events
    if not seen:
        service.events[event.id] = None
        if len(service.events) > _MAX_EVENTS:
            service.events.popitem(last=False)
        service.metrics.webhooks.labels(event.event).inc()
    return m.WebhookAnswer(event=event.event, seen_before=seen)


@router.post("/api/session", tags=["session"], responses=_errors(401))
async def open_session(
    body: m.SessionRequest, request: Request, response: Response, service: TheService
) -> m.SessionAnswer:
    """Exchanges a key for a cookie that scripts cannot read and other sites cannot send."""
    who = service.gate.exchange(request, body.key)
    response.set_cookie(
        cookie_name(request),
        service.gate.keyring.make_session(who),
        max_age=SESSION_LIFETIME_S,
        httponly=True,
        samesite="strict",
        secure=service.secure,
    )
    return _session(who)


@router.get("/api/session", tags=["session"], responses=_errors(*_KEYED))
async def session(who: Reading) -> m.SessionAnswer:
    """Says whose key or cookie it is. Needs the permission `read`."""
    return _session(who)


@router.delete("/api/session", tags=["session"], responses=_errors())
async def close_session(request: Request, response: Response) -> m.HealthAnswer:
    """Forgets the cookie."""
    response.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
    return m.HealthAnswer()


def _session(who: Principal) -> m.SessionAnswer:
    return m.SessionAnswer(
        name=who.name, permissions=sorted(who.permissions), expires_in_s=SESSION_LIFETIME_S
    )


@router.get("/healthz", tags=["monitoring"], responses=_errors())
async def healthz() -> m.HealthAnswer:
    """Whether the service itself lives; asks nothing else."""
    return m.HealthAnswer()


@router.get("/readyz", tags=["monitoring"], responses={**_errors(), 503: {"model": m.ReadyAnswer}})
async def readyz(response: Response, service: TheService) -> m.ReadyAnswer:
    """Whether a call could be made now, dependency by dependency; 503 when not."""
    answer = _readiness(await service.metrics.checks(service.backend))
    response.status_code = 200 if answer.ready else 503
    return answer


def _readiness(checks: list[m.Check]) -> m.ReadyAnswer:
    return m.ReadyAnswer(
        ready=all(check.ok or not check.required for check in checks), checks=checks
    )


@router.get(
    "/metrics",
    tags=["monitoring"],
    response_class=Response,
    responses={
        **_errors(*_KEYED),
        200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}},
    },
)
async def metrics(service: TheService, _: Reading) -> Response:
    """Metrics for Prometheus. Needs the permission `read`."""
    text = await service.metrics.scrape(service.backend)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
