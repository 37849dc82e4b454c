"""Authentication and authorisation: keys, session cookies, permissions, rate limits."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Final, get_args

from fastapi import Request
from itsdangerous import BadSignature, TimestampSigner
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from pydantic import SecretStr

from labvoice.errors import SettingsError
from labvoice.web.errors import HttpError
from labvoice.web.models import Permission
from labvoice.web.settings import WebSettings

ALL_PERMISSIONS: Final[frozenset[Permission]] = frozenset(get_args(Permission))
SESSION_LIFETIME_S: Final = 12 * 3600
MIN_KEY_LENGTH: Final = 16
MIN_REMOTE_KEY_LENGTH: Final = 32
"""Of every key when the service listens on more than loopback."""

_ENTRY: Final = re.compile(r"([a-z0-9-]{1,32}):([a-z+]+):(\S+)")
_WRONG_KEYS: Final = RateLimitItemPerSecond(10, 10)
"""Of one address: ten within ten seconds."""
_ADDRESS_FACTOR: Final = 4
"""Ratio of the rate limits of an address and of a key: an address may use several keys."""
_UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Principal:
    """The owner of a key."""

    name: str
    permissions: frozenset[Permission]

    def require(self, needed: Permission) -> None:
        """Checks a permission.

        Raises:
            HttpError: 403 when it is missing.
        """
        if needed not in self.permissions:
            raise HttpError(
                403,
                "forbidden",
                f"the key {self.name!r} has no permission `{needed}`",
                "use another key, or grant it in LABVOICE_API_KEYS",
            )


@dataclass(frozen=True)
class _Key:
    principal: Principal
    digest: bytes = field(repr=False)


class Keyring:
    """The valid keys; only the SHA-256 of each is kept.

    Args:
        settings: `api_key` and `api_keys`.
        remote: Whether the service listens on more than loopback; keys must then be longer.

    Attributes:
        made_key: The generated key, if none was set; None otherwise.

    Raises:
        SettingsError: A key is too short, or an entry of `api_keys` cannot be read.
    """

    def __init__(self, settings: WebSettings, *, remote: bool = False) -> None:
        self.made_key: SecretStr | None = None
        self._keys: dict[str, _Key] = {}
        self._min_length = MIN_REMOTE_KEY_LENGTH if remote else MIN_KEY_LENGTH
        key = settings.api_key
        if key is None:
            key = self.made_key = SecretStr(secrets.token_urlsafe(32))
        self._add("owner", ALL_PERMISSIONS, key.get_secret_value(), "LABVOICE_API_KEY")
        entries = settings.api_keys.get_secret_value().split() if settings.api_keys else []
        for number, entry in enumerate(entries, 1):
            self._add_entry(number, entry)

    def _add_entry(self, number: int, entry: str) -> None:
        where = f"entry {number} of LABVOICE_API_KEYS"
        found = _ENTRY.fullmatch(entry)
        if not found:
            raise SettingsError(
                f"{where} cannot be read",
                "write `name:permission+permission:key`, entries separated by blanks",
            )
        name, words, key = found.groups()
        permissions = frozenset(known for known in ALL_PERMISSIONS if known in words.split("+"))
        if len(permissions) != len(words.split("+")):
            raise SettingsError(
                f"{where} grants something unknown: {words}",
                f"permissions are {', '.join(sorted(ALL_PERMISSIONS))}",
            )
        if name in self._keys:
            raise SettingsError(f"{where} has the name {name!r} again", "give each key its own")
        self._add(name, permissions, key, where)

    def _add(self, name: str, permissions: frozenset[Permission], key: str, where: str) -> None:
        if len(key) < self._min_length:
            raise SettingsError(
                f"the key in {where} is {len(key)} characters long; "
                f"at least {self._min_length} are needed",
                'make one with `python -c "import secrets; print(secrets.token_urlsafe(32))"`',
            )
        self._keys[name] = _Key(Principal(name, permissions), hashlib.sha256(key.encode()).digest())

    def find(self, key: str) -> Principal | None:
        """Returns the owner of a key; every comparison takes the same time."""
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        found = None
        for entry in self._keys.values():
            if hmac.compare_digest(entry.digest, digest):
                found = entry.principal
        return found

    def make_session(self, principal: Principal) -> str:
        """Returns a cookie's value that represents the key and does not reveal it."""
        return self._signer(principal.name).sign(principal.name).decode()

    def find_session(self, cookie: str) -> Principal | None:
        """Returns the owner of a cookie; None if it is forged, expired, or its key was removed."""
        name = cookie.partition(".")[0]
        if name not in self._keys:
            return None
        try:
            self._signer(name).unsign(cookie, max_age=SESSION_LIFETIME_S)
        except BadSignature:  # the base class of expired signatures too
            return None
        return self._keys[name].principal

    def _signer(self, name: str) -> TimestampSigner:
        # The key signs its sessions: a changed key ends them.
        return TimestampSigner(
            self._keys[name].digest, salt="labvoice-session", digest_method=hashlib.sha256
        )


class Gate:
    """Authenticates requests, and refuses those without permission.

    Args:
        keyring: The valid keys.
        rate_hz: Requests per second for one key; an address may make four times as many.
        public_origin: Origin of the service's own pages behind a proxy; may be empty.
    """

    def __init__(self, keyring: Keyring, rate_hz: float, public_origin: str = "") -> None:
        self.keyring = keyring
        self._public_origin = public_origin
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._by_key = _limit_of(rate_hz)
        self._by_address = _limit_of(_ADDRESS_FACTOR * rate_hz)

    def admit_address(self, address: str) -> None:
        """Counts a request of an address, with any key.

        Raises:
            HttpError: 429 if the address sends too many.
        """
        self._count(self._by_address, "address", address, "this address asks too often")

    def admit(self, request: Request, needed: Permission) -> Principal:
        """Returns the owner of a request's key or cookie.

        Raises:
            HttpError: 401 without a valid key or cookie, 403 without the permission or from
                another site's page, 429 after too many requests or wrong keys.
        """
        principal = self._who(request)
        self._count(self._by_key, "key", principal.name, "this key asks too often")
        principal.require(needed)
        return principal

    def exchange(self, request: Request, key: str) -> Principal:
        """Returns the owner of a key, for a session.

        Raises:
            HttpError: 401 if the key is not valid, 429 after too many requests or wrong keys.
        """
        principal = self._find(request, key)
        self._count(self._by_key, "key", principal.name, "this key asks too often")
        return principal

    def _who(self, request: Request) -> Principal:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._find(request, key.strip())
        # A cookie is signed with 256 bits: it cannot be guessed, so a wrong one is not counted.
        principal = self.keyring.find_session(request.cookies.get(cookie_name(request), ""))
        if principal is None:
            raise _unauthorized()
        if request.method in _UNSAFE and not self._same_origin(request):
            raise HttpError(
                403,
                "cross_site",
                "a page of another site asked with this browser's cookie",
                "pages of other sites send a key in the header `Authorization: Bearer …`",
            )
        return principal

    def _find(self, request: Request, key: str) -> Principal:
        """Looks up a key; an address with too many wrong keys has to wait, with a right one too."""
        guesses = ("wrong key", _address(request))
        if not self._limiter.test(_WRONG_KEYS, *guesses):
            observed = "too many wrong keys came from this address"
            raise self._too_many(_WRONG_KEYS, *guesses, observed)
        principal = self.keyring.find(key)
        if principal is None:
            self._limiter.hit(_WRONG_KEYS, *guesses)
            raise _unauthorized()
        return principal

    def _count(self, limit: RateLimitItem, kind: str, name: str, observed: str) -> None:
        if not self._limiter.hit(limit, kind, name):
            raise self._too_many(limit, kind, name, observed)

    def _too_many(self, limit: RateLimitItem, kind: str, name: str, observed: str) -> HttpError:
        wait_s = max(0.0, self._limiter.get_window_stats(limit, kind, name)[0] - time.time())
        return HttpError(
            429,
            "too_many_requests",
            observed,
            f"wait {wait_s:.1f} s; LABVOICE_RATE_LIMIT is the limit of a key",
            {"Retry-After": str(int(wait_s) + 1)},
        )

    def _same_origin(self, request: Request) -> bool:
        site = request.headers.get("sec-fetch-site")
        if site is not None:
            return site == "same-origin"
        origin = request.headers.get("origin")
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        return origin is not None and origin in {own, self._public_origin}


def _unauthorized() -> HttpError:
    return HttpError(
        401,
        "unauthorized",
        "the request has no valid key",
        "send `Authorization: Bearer KEY`, or open the page by the URL that `labvoice up` printed",
        {"WWW-Authenticate": "Bearer"},
    )


def _limit_of(rate_hz: float) -> RateLimitItem:
    """Returns a limit per second, counted over two seconds or more to allow short bursts."""
    window_s = max(2, math.ceil(1 / rate_hz))
    return RateLimitItemPerSecond(max(1, round(rate_hz * window_s)), window_s)


def cookie_name(request: Request) -> str:
    """Returns the session cookie's name; it has the port, which cookies do not distinguish."""
    return f"labvoice-session-{request.url.port or 80}"


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
