"""Who may ask the HTTP service what; each test is named in docs/security.md."""

from __future__ import annotations

import json
import re
import time

import httpx
import jwt
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from labvoice.errors import SettingsError
from labvoice.settings import read_settings
from labvoice.web.app import MAX_BODY_BYTES, create_app
from labvoice.web.security import SESSION_LIFETIME_S, Keyring
from labvoice.web.server import HttpServer
from labvoice.web.settings import WebSettings
from labvoice.web.stub import StubBackend
from labvoice.web.up import prepare
from tests.unit.web_client import (
    FRONT_KEY,
    KEY,
    OWNER,
    READ_KEY,
    client_with,
    settings_with,
)

OPEN_ROUTES = {"/healthz", "/readyz", "/api/webhook", "/api/session"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes() -> list[tuple[str, str]]:
    paths = client_with().get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


@pytest.mark.parametrize(("method", "path"), [r for r in routes() if r[1] not in OPEN_ROUTES])
def test_nothing_is_done_without_a_key(method: str, path: str) -> None:
    """Every route but the few open ones answers 401 without a key and with a wrong one."""
    client = client_with()
    url = path.format(room="room", dispatch_id="AD_x", call_id="call-0001")
    for headers in ({}, bearer("wrong"), {"Authorization": "Basic b3duZXI6a2V5"}):
        answer = client.request(method, url, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("key", "method", "path", "allowed"),
    [
        (READ_KEY, "GET", "/api/rooms", True),
        (READ_KEY, "GET", "/metrics", True),
        (READ_KEY, "POST", "/api/token", False),
        (READ_KEY, "POST", "/api/dispatch-agent", False),
        (FRONT_KEY, "POST", "/api/token", True),
        (FRONT_KEY, "POST", "/api/dispatch-agent", True),
        (FRONT_KEY, "GET", "/api/rooms", False),
        (FRONT_KEY, "POST", "/api/rooms/room/clean", False),
        (KEY, "POST", "/api/rooms/room/clean", True),
    ],
)
def test_a_key_does_what_it_was_given_for(key: str, method: str, path: str, allowed: bool) -> None:
    """A key without the permission gets 403, one that has it does not."""
    body = {"room": "room"} if method == "POST" else None
    answer = client_with().request(method, path, headers=bearer(key), json=body)
    assert (answer.status_code != 403) is allowed


def test_a_key_becomes_a_cookie_that_scripts_and_other_sites_cannot_use() -> None:
    """The cookie is HttpOnly, SameSite=Strict, of limited life, and does not hold the key."""
    client = client_with()
    answer = client.post("/api/session", json={"key": KEY})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert f"Max-Age={SESSION_LIFETIME_S}" in cookie
    assert KEY not in cookie
    assert client.get("/api/rooms").status_code == 200


def test_a_cookie_serves_only_the_services_own_pages() -> None:
    """With a cookie, a request that changes something must come from the same origin."""
    client = client_with()
    client.post("/api/session", json={"key": KEY})
    for headers, status in [
        ({}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:9001"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:9000"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost:9000"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ]:
        assert client.post("/api/token", json={}, headers=headers).status_code == status


def test_a_forged_or_expired_cookie_is_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any change, another key's signature, and time end a session."""
    keyring = Keyring(settings_with())
    owner = keyring.find(KEY)
    reader = keyring.find(READ_KEY)
    assert owner is not None
    assert reader is not None
    cookie = keyring.make_session(owner)
    assert keyring.find_session(cookie) == owner
    name, made, signature = cookie.split(".")
    reader_signature = keyring.make_session(reader).split(".")[2]
    for forged in (
        "",
        name,
        f"nobody.{made}.{signature}",
        f"{name}.{made[::-1]}.{signature}",
        f"{name}.{made}.{reader_signature}",
        f"{name}.{made}.é",
        f"{name}.²{made}.{signature}",
    ):
        assert keyring.find_session(forged) is None
    later = time.time() + SESSION_LIFETIME_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert keyring.find_session(cookie) is None


def test_a_changed_key_ends_its_sessions() -> None:
    """A cookie made from the old key is refused when the key is another."""
    old, new = Keyring(settings_with()), Keyring(settings_with(api_key=SecretStr("n" * 20)))
    owner = old.find(KEY)
    assert owner is not None
    assert new.find_session(old.make_session(owner)) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9000", "127.0.0.1.evil.example", ""]
)
def test_a_rebound_host_name_is_told_nothing(host: str) -> None:
    """A request under a host name that is not listed gets 421, whatever its key."""
    answer = client_with().get("/healthz", headers={**OWNER, "Host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9000", "[::1]:9000", "LAB.example:80"])
def test_listed_host_names_are_served(host: str) -> None:
    """Loopback's names and those of LABVOICE_ALLOWED_HOSTS are answered."""
    client = client_with(allowed_hosts="lab.example")
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


def test_only_listed_origins_may_read_answers() -> None:
    """A listed origin gets its CORS headers, another one gets none, and no cookie travels."""
    client = client_with(cors_origins="https://shop.example")
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    listed = client.options("/api/token", headers={"Origin": "https://shop.example", **asked})
    assert listed.status_code == 200
    assert listed.headers["access-control-allow-origin"] == "https://shop.example"
    assert "access-control-allow-credentials" not in listed.headers
    for origin in ("https://evil.example", "null", "https://shop.example.evil.example"):
        for answer in (
            client.options("/api/token", headers={"Origin": origin, **asked}),
            client.post("/api/token", headers={"Origin": origin, **OWNER}, json={}),
        ):
            assert "access-control-allow-origin" not in answer.headers


def test_a_token_is_for_one_room_and_identity_with_least_grants_for_minutes() -> None:
    """It may join that room, speak and listen; it administers nothing and soon ends."""
    backend = StubBackend()
    answer = client_with(backend).post(
        "/api/token", headers=OWNER, json={"room": "room 7", "identity": "ada"}
    )
    claims = jwt.decode(
        answer.json()["token"], backend.api_secret.get_secret_value(), algorithms=["HS256"]
    )
    assert claims["sub"] == "ada"
    assert claims["exp"] - claims["nbf"] <= 600
    assert claims["video"] == {
        "roomJoin": True,
        "room": "room 7",
        "canPublish": True,
        "canPublishSources": ["microphone"],
        "canSubscribe": True,
        "canPublishData": True,
    }


def test_a_token_that_dispatches_needs_both_permissions() -> None:
    """The strategy `token` is refused to a key that may not dispatch."""
    only_token = "only-token-key-0123456789"
    client = client_with(api_keys=SecretStr(f"kiosk:token:{only_token}"))
    for strategy, status in (("token", 403), ("concurrent", 200)):
        answer = client.post("/api/token", headers=bearer(only_token), json={"strategy": strategy})
        assert answer.status_code == status


def test_nobody_gets_a_token_as_an_agent() -> None:
    """An identity that agents are known by is refused."""
    answer = client_with().post("/api/token", headers=OWNER, json={"identity": "agent-AJ_1"})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "name", ["../etc", "a/b", "a\nb", " a", "", "x" * 129, "a\u0000", "<b>", "\ud800"]
)
def test_odd_names_are_refused(name: str) -> None:
    """Names that URLs, logs and shells would not carry unharmed end in 422 everywhere."""
    client = client_with()
    text = json.dumps({"room": name})
    headers = {**OWNER, "Content-Type": "application/json"}
    for path in ("/api/dispatch-agent", "/api/token", "/api/calls/call-0001"):
        answer = client.post(path, headers=headers, content=text)
        assert answer.status_code == 422
        assert answer.json()["error"]["message"]
    named = client.post(
        "/api/dispatch-agent",
        headers=headers,
        content=text.replace("room", "agent_name").replace("{", '{"room": "a", '),
    )
    assert named.status_code == 422


def test_asking_too_often_is_refused_for_that_key_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Past its burst a key gets 429 from any address, for a while; another key is still served."""
    now_s = 1_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    client = client_with(rate_limit_hz=0.5)
    assert client.get("/api/workers", headers=OWNER).status_code == 200
    refused = client.get("/api/workers", headers=OWNER)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) == 3
    elsewhere = TestClient(
        client.app, base_url="http://localhost:9000", client=("192.0.2.7", 50_000)
    )
    assert elsewhere.get("/api/workers", headers=OWNER).status_code == 429
    assert client.get("/api/workers", headers=bearer(READ_KEY)).status_code == 200
    now_s += 2.1
    assert client.get("/api/workers", headers=OWNER).status_code == 200


def test_an_address_that_asks_too_often_is_refused_whatever_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Open routes and pages count too; health and what pages load do not."""
    now_s = 1_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    client = client_with(rate_limit_hz=0.5)  # four at once for an address
    for path in ("/", "/docs", "/readyz", "/openapi.json"):
        assert client.get(path, follow_redirects=False).status_code < 400
    for method, path in [("GET", "/readyz"), ("POST", "/api/session"), ("POST", "/api/webhook")]:
        refused = client.request(method, path)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_requests"
        assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200
    assert client.get("/static/page.js").status_code == 200
    other = TestClient(client.app, base_url="http://localhost:9000", client=("192.0.2.7", 50_000))
    assert other.get("/readyz").status_code == 200


def test_guessing_keys_is_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten wrong keys in ten seconds from an address even the right one waits.

    A session that is open goes on, other addresses are served, and a request without any key is
    no guess.
    """
    now_s = 1_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    client = client_with()
    page = TestClient(client.app, base_url="http://localhost:9000")
    page.post("/api/session", json={"key": KEY})
    elsewhere = TestClient(
        client.app, base_url="http://localhost:9000", client=("192.0.2.7", 50_000)
    )
    for _ in range(20):
        assert client.get("/api/workers").status_code == 401
    for number in range(5):
        assert client.post("/api/session", json={"key": f"guess-{number}"}).status_code == 401
        assert client.get("/api/workers", headers=bearer(f"guess-{number}")).status_code == 401
    assert client.get("/api/workers", headers=OWNER).status_code == 429
    assert client.post("/api/session", json={"key": KEY}).status_code == 429
    assert page.get("/api/workers").status_code == 200
    assert elsewhere.get("/api/workers", headers=OWNER).status_code == 200
    now_s += 10.1
    assert client.get("/api/workers", headers=OWNER).status_code == 200


def test_two_services_of_one_key_share_sessions_and_count_requests_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy may send one browser to either; what a key may ask for is added up, one by one."""
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    one, two = (client_with(rate_limit_hz=0.5) for _ in range(2))
    one.post("/api/session", json={"key": KEY})
    two.cookies = one.cookies
    assert two.get("/api/workers").status_code == 200
    assert two.get("/api/workers").status_code == 429
    assert one.get("/api/workers", headers=bearer(READ_KEY)).status_code == 200
    assert one.get("/api/workers", headers=bearer(READ_KEY)).status_code == 429


def test_behind_a_proxy_with_tls_the_cookie_is_secure() -> None:
    """LABVOICE_PUBLIC_URL allows its host and its pages, and makes the cookie Secure."""
    client = client_with(public_url="https://lab.example:8443/")
    host = {"Host": "lab.example"}
    assert client.get("/healthz", headers=host).status_code == 200
    cookie = client.post("/api/session", json={"key": KEY}).headers["set-cookie"]
    assert "Secure" in cookie
    assert (
        "Secure" not in client_with().post("/api/session", json={"key": KEY}).headers["set-cookie"]
    )
    value = {"Cookie": cookie.partition(";")[0]}
    for origin, status in [
        ("https://lab.example:8443", 200),
        ("https://lab.example", 403),
        ("http://lab.example:8443", 403),
    ]:
        headers = {**value, "Origin": origin}
        assert client.post("/api/token", json={}, headers=headers).status_code == status
    with pytest.raises(ValueError, match="without a path"):
        settings_with(public_url="https://lab.example/voice")


def test_a_session_can_be_closed() -> None:
    """DELETE /api/session takes the cookie back; what it opened is closed to this client."""
    client = client_with()
    client.post("/api/session", json={"key": KEY})
    assert client.get("/api/session").json()["name"] == "owner"
    closed = client.delete("/api/session")
    assert closed.json() == {"status": "ok"}
    assert "Max-Age=0" in closed.headers["set-cookie"]
    assert client.get("/api/session").status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "0.0.0.0"])  # noqa: S104
async def test_the_printed_address_is_answered(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is listened on, the page's printed address and the webhook's are served."""
    monkeypatch.setenv("LABVOICE_API_KEY", "k" * 32)
    service = prepare(host, 0, allow_remote=True)
    app = create_app(StubBackend(), service.settings, service.keyring)
    async with (
        HttpServer(app, service.sock),
        httpx.AsyncClient(trust_env=False, timeout=10) as client,
    ):
        assert (await client.get(f"{service.url}/healthz")).status_code == 200
        assert (await client.get(service.webhook_url)).status_code == 405


def test_the_public_address_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy the page's address is the proxy's; webhooks still come to this machine."""
    monkeypatch.setenv("LABVOICE_PUBLIC_URL", "https://lab.example")
    service = prepare("127.0.0.1", 0)
    service.sock.close()
    assert service.url == "https://lab.example"
    assert service.webhook_url.startswith("http://127.0.0.1:")


def test_bodies_are_bounded() -> None:
    """A body over the limit is refused, announced or not, and so is a wrong length."""
    client = client_with()
    headers = {**OWNER, "Content-Type": "application/json"}
    too_long = b" " * (MAX_BODY_BYTES + 1)
    announced = client.post("/api/token", headers=headers, content=too_long)
    chunked = client.post("/api/token", headers=headers, content=iter([too_long[:1000]] * 300))
    for answer in (announced, chunked):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_large"


def test_a_page_may_load_nothing_from_elsewhere() -> None:
    """Both pages carry a policy without foreign or inline scripts, and cannot be framed."""
    client = client_with()
    for path in ("/debug", "/docs"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        scripts = re.search(r"script-src ([^;]*)", policy)
        assert scripts is not None
        assert set(scripts[1].split()) <= {"'self'", "blob:"}
        assert "frame-ancestors 'none'" in policy
        assert "<script>" not in answer.text
        assert "//" not in answer.text.replace("https://localhost", "")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_webhook_that_livekit_did_not_sign_is_refused() -> None:
    """Without a signature, with another body, and with another secret it is 401."""
    backend = StubBackend()
    client = client_with(backend)
    body = '{"event": "room_started", "id": "EV_1", "room": {"name": "a"}}'
    for headers, sent in [
        ({}, body),
        ({"Authorization": sign(body, "x" * 40)}, body),
        ({"Authorization": sign(body, backend.api_secret.get_secret_value())}, body + " "),
    ]:
        assert post_webhook(client, sent, headers) == 401
    good = {"Authorization": sign(body, backend.api_secret.get_secret_value())}
    assert post_webhook(client, body, good) == 200


def sign(body: str, secret: str) -> str:
    import base64
    import hashlib

    from livekit import api

    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    return api.AccessToken("stub", secret).with_sha256(digest).to_jwt()


def post_webhook(client: TestClient, body: str, headers: dict[str, str]) -> int:
    headers = {**headers, "Content-Type": "application/webhook+json"}
    return client.post("/api/webhook", content=body, headers=headers).status_code


@pytest.mark.parametrize(
    ("values", "remote", "words"),
    [
        ({"api_key": SecretStr("short")}, False, "at least 16"),
        ({"api_key": SecretStr("k" * 31)}, True, "at least 32"),
        ({"api_keys": SecretStr("no-permissions")}, False, "cannot be read"),
        ({"api_keys": SecretStr(f"a:fly:{KEY}")}, False, "unknown: fly"),
        ({"api_keys": SecretStr(f"owner:read:{KEY}")}, False, "again"),
        ({"api_keys": SecretStr("a:read:short")}, False, "at least 16"),
    ],
)
def test_weak_or_odd_keys_are_refused_at_start(
    values: dict[str, SecretStr], remote: bool, words: str
) -> None:
    """A key that is too short for where the service listens ends the start, unrepeated."""
    with pytest.raises(SettingsError, match=words) as caught:
        Keyring(WebSettings(**values), remote=remote)  # type: ignore[arg-type]
    for secret in values.values():
        assert secret.get_secret_value() not in str(caught.value)


def test_without_a_key_a_long_one_is_made() -> None:
    """Each start makes another, of at least 32 characters."""
    first, second = Keyring(WebSettings()).made_key, Keyring(WebSettings()).made_key
    assert first is not None
    assert second is not None
    assert len(first.get_secret_value()) >= 32
    assert first != second


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented variables are read, and a wrong one is named without its value."""
    monkeypatch.setenv("LABVOICE_API_KEY", KEY)
    monkeypatch.setenv("LABVOICE_ALLOWED_HOSTS", "Lab.example, other.example")
    settings = read_settings(WebSettings)
    assert settings.api_key == SecretStr(KEY)
    assert {"lab.example", "other.example", "localhost"} <= settings.hosts
    monkeypatch.setenv("LABVOICE_RATE_LIMIT", "many-secret")
    with pytest.raises(SettingsError, match="LABVOICE_RATE_LIMIT") as caught:
        read_settings(WebSettings)
    assert "many-secret" not in str(caught.value)
