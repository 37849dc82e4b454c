"""Who may ask what: keys, cookies made from them, permissions, rate limits."""

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
"""An address may ask so many times as often as a key: several keys may come from it."""
_UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Principal:
    """Who is asking.

    Attributes:
        name: Of the key.
        permissions: What it may do.
    """

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
    """The keys in force; of each only its SHA-256 is kept.

    Args:
        settings: `api_key` and `api_keys`.
        remote: Whether the service listens on more than loopback, where keys must be longer.

    Attributes:
        made_key: The key that was made because none was set; None otherwise.

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
        """Returns whose key it is; every comparison takes the same time."""
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        found = None
        for entry in self._keys.values():
            if hmac.compare_digest(entry.digest, digest):
                found = entry.principal
        return found

    def make_session(self, principal: Principal) -> str:
        """Returns a cookie's value that stands for the key and says nothing of it."""
        return self._signer(principal.name).sign(principal.name).decode()

    def find_session(self, cookie: str) -> Principal | None:
        """Returns whose cookie it is; None when it is forged, expired, or its key is gone."""
        name = cookie.partition(".")[0]
        if name not in self._keys:
            return None
        try:
            self._signer(name).unsign(cookie, max_age=SESSION_LIFETIME_S)
        except BadSignature:  # an expired one is one, too
            return None
        return self._keys[name].principal

    def _signer(self, name: str) -> TimestampSigner:
        # A changed key ends its sessions, since it is what signs them.
        return TimestampSigner(
            self._keys[name].digest, salt="labvoice-session", digest_method=hashlib.sha256
        )


class Gate:
    """Tells who is asking, and refuses who may not.

    Args:
        keyring: The keys in force.
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
        """Counts a request of an address, whoever asks.

        Raises:
            HttpError: 429 when it asks too often.
        """
        self._count(self._by_address, "address", address, "this address asks too often")

    def admit(self, request: Request, needed: Permission) -> Principal:
        """Returns who is asking.

        Raises:
            HttpError: 401 without a good key or cookie, 403 without the permission or from
                another site's page, 429 when asked too often or after many wrong keys.
        """
        principal = self._who(request)
        self._count(self._by_key, "key", principal.name, "this key asks too often")
        principal.require(needed)
        return principal

    def exchange(self, request: Request, key: str) -> Principal:
        """Returns whose key it is, for a session.

        Raises:
            HttpError: 401 when it is nobody's, 429 after many of those or when asked too often.
        """
        principal = self._find(request, key)
        self._count(self._by_key, "key", principal.name, "this key asks too often")
        return principal

    def _who(self, request: Request) -> Principal:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._find(request, key.strip())
        # A cookie is signed with 256 bits: nobody guesses it, and an old one is no guess.
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
        """Looks a key up, unless its address has tried too many: then a right one waits too."""
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
            f"wait {wait_s:.1f} s; LABVOICE_RATE_LIMIT says how often a key may ask",
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
        "the request has no key that is in force",
        "send `Authorization: Bearer KEY`, or open the page by the URL that `labvoice up` printed",
        {"WWW-Authenticate": "Bearer"},
    )


def _limit_of(rate_hz: float) -> RateLimitItem:
    """Returns a limit of so many a second, counted over two seconds or more: short bursts pass."""
    window_s = max(2, math.ceil(1 / rate_hz))
    return RateLimitItemPerSecond(max(1, round(rate_hz * window_s)), window_s)


def cookie_name(request: Request) -> str:
    """Returns the session cookie's name; cookies do not tell ports apart, names must."""
    return f"labvoice-session-{request.url.port or 80}"


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
