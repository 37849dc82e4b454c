"""Who may ask what: keys, cookies made from them, permissions, rate limits."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, get_args

from fastapi import Request
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
_FAILURES_HZ: Final = 1.0
_MAX_BUCKETS: Final = 10_000
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
        expires = int(time.time()) + SESSION_LIFETIME_S
        return f"{principal.name}.{expires}.{self._sign(principal.name, expires)}"

    def find_session(self, cookie: str) -> Principal | None:
        """Returns whose cookie it is; None when it is forged, expired, or its key is gone."""
        name, _, rest = cookie.partition(".")
        expires, _, signature = rest.partition(".")
        if name not in self._keys or not re.fullmatch(r"[0-9]{1,12}", expires):
            return None
        good = self._sign(name, int(expires))
        if not hmac.compare_digest(good.encode(), signature.encode("utf-8", "replace")):
            return None
        return self._keys[name].principal if int(expires) > time.time() else None

    def _sign(self, name: str, expires: int) -> str:
        # A changed key ends its sessions, since it is what signs them.
        message = f"labvoice-session:{name}:{expires}".encode()
        return hmac.new(self._keys[name].digest, message, hashlib.sha256).hexdigest()


class RateLimiter:
    """A token bucket for each of many names; the longest unused are forgotten.

    Args:
        rate_hz: Tokens per second.
        burst: How many a full bucket holds.
    """

    def __init__(self, rate_hz: float, burst: float) -> None:
        self._rate_hz = rate_hz
        self._burst = max(1.0, burst)
        self._buckets: OrderedDict[tuple[str, ...], tuple[float, float]] = OrderedDict()

    def take(self, name: tuple[str, ...], now_s: float | None = None) -> float:
        """Takes one token; returns 0, or the seconds until there is one.

        Args:
            name: Whose bucket.
            now_s: Monotonic seconds; now when not given.
        """
        now_s = time.monotonic() if now_s is None else now_s
        tokens, at_s = self._buckets.pop(name, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - at_s) * self._rate_hz)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._rate_hz
        self._buckets[name] = (tokens if wait_s else tokens - 1, now_s)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait_s


class Gate:
    """Tells who is asking, and refuses who may not.

    Args:
        keyring: The keys in force.
        rate_hz: Requests per second for one key from one address.
    """

    def __init__(self, keyring: Keyring, rate_hz: float) -> None:
        self.keyring = keyring
        self._requests = RateLimiter(rate_hz, 2 * rate_hz)
        self._failures = RateLimiter(_FAILURES_HZ, 10)

    def admit(self, request: Request, needed: Permission) -> Principal:
        """Returns who is asking.

        Raises:
            HttpError: 401 without a good key or cookie, 403 without the permission or from
                another site's page, 429 when asked too often.
        """
        principal = self._who(request)
        self._limit(self._requests, (principal.name, _address(request)))
        principal.require(needed)
        return principal

    def exchange(self, request: Request, key: str) -> Principal:
        """Returns whose key it is, for a session.

        Raises:
            HttpError: 401 when it is nobody's, 429 after many of those.
        """
        principal = self.keyring.find(key)
        if principal is None:
            raise self._refused(request)
        self._limit(self._requests, (principal.name, _address(request)))
        return principal

    def _who(self, request: Request) -> Principal:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            principal = self.keyring.find(key.strip())
        else:
            principal = self.keyring.find_session(request.cookies.get(cookie_name(request), ""))
            if principal is not None and request.method in _UNSAFE and not _same_origin(request):
                raise HttpError(
                    403,
                    "cross_site",
                    "a page of another site asked with this browser's cookie",
                    "pages of other sites send a key in the header `Authorization: Bearer …`",
                )
        if principal is None:
            raise self._refused(request)
        return principal

    def _refused(self, request: Request) -> HttpError:
        self._limit(self._failures, (_address(request),))
        return HttpError(
            401,
            "unauthorized",
            "the request has no key that is in force",
            "send `Authorization: Bearer KEY`, or open the page by the URL that "
            "`labvoice up` printed",
            {"WWW-Authenticate": "Bearer"},
        )

    @staticmethod
    def _limit(limiter: RateLimiter, name: tuple[str, ...]) -> None:
        if wait_s := limiter.take(name):
            raise HttpError(
                429,
                "too_many_requests",
                "this key or address asks too often",
                f"wait {wait_s:.1f} s, or raise LABVOICE_RATE_LIMIT",
                {"Retry-After": str(int(wait_s) + 1)},
            )


def cookie_name(request: Request) -> str:
    """Returns the session cookie's name; cookies do not tell ports apart, names must."""
    return f"labvoice-session-{request.url.port or 80}"


def _same_origin(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin == f"{request.url.scheme}://{request.headers.get('host', '')}"


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
