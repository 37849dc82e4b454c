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
_ADDRESS_FACTOR: Final = 4
"""An address may ask so many times as often as a key: several keys may come from it."""
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
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now_s: float | None = None) -> float:
        """Takes one token; returns 0, or the seconds until there is one.

        Args:
            name: Whose bucket.
            now_s: Monotonic seconds; now when not given.
        """
        now_s = time.monotonic() if now_s is None else now_s
        tokens = self._tokens(name, now_s)
        wait_s = self._wait(tokens)
        self._buckets[name] = (tokens if wait_s else tokens - 1, now_s)
        self._buckets.move_to_end(name)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait_s

    def look(self, name: str) -> float:
        """Returns what :meth:`take` would, and takes nothing."""
        return self._wait(self._tokens(name, time.monotonic()))

    def _tokens(self, name: str, now_s: float) -> float:
        tokens, at_s = self._buckets.get(name, (self._burst, now_s))
        return min(self._burst, tokens + (now_s - at_s) * self._rate_hz)

    def _wait(self, tokens: float) -> float:
        return 0.0 if tokens >= 1 else (1 - tokens) / self._rate_hz


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
        self._by_key = RateLimiter(rate_hz, 2 * rate_hz)
        address_hz = _ADDRESS_FACTOR * rate_hz
        self._by_address = RateLimiter(address_hz, 2 * address_hz)
        self._failures = RateLimiter(_FAILURES_HZ, 10)

    def admit_address(self, address: str) -> None:
        """Counts a request of an address, whoever asks.

        Raises:
            HttpError: 429 when it asks too often.
        """
        _limit(self._by_address.take(address), "this address asks too often")

    def admit(self, request: Request, needed: Permission) -> Principal:
        """Returns who is asking.

        Raises:
            HttpError: 401 without a good key or cookie, 403 without the permission or from
                another site's page, 429 when asked too often or after many wrong keys.
        """
        principal = self._who(request)
        _limit(self._by_key.take(principal.name), "this key asks too often")
        principal.require(needed)
        return principal

    def exchange(self, request: Request, key: str) -> Principal:
        """Returns whose key it is, for a session.

        Raises:
            HttpError: 401 when it is nobody's, 429 after many of those or when asked too often.
        """
        principal = self._find(request, key)
        _limit(self._by_key.take(principal.name), "this key asks too often")
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
        address = _address(request)
        _limit(self._failures.look(address), "too many wrong keys came from this address")
        principal = self.keyring.find(key)
        if principal is None:
            self._failures.take(address)
            raise _unauthorized()
        return principal

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


def _limit(wait_s: float, observed: str) -> None:
    if wait_s:
        raise HttpError(
            429,
            "too_many_requests",
            observed,
            f"wait {wait_s:.1f} s; LABVOICE_RATE_LIMIT says how often a key may ask",
            {"Retry-After": str(int(wait_s) + 1)},
        )


def cookie_name(request: Request) -> str:
    """Returns the session cookie's name; cookies do not tell ports apart, names must."""
    return f"labvoice-session-{request.url.port or 80}"


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
