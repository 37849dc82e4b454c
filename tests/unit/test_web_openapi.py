"""The HTTP service against its own OpenAPI document, with inputs made up by Schemathesis."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS

from tests.unit.web_client import OWNER, READ_KEY, app_with, client_with

schema = schemathesis.openapi.from_asgi(
    "/openapi.json", app_with(rate_limit_hz=100_000.0, allowed_hosts="testserver")
)
_CHECKS: list[Any] = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
    )
]


_FOUND: list[Any] = list(schema.get_all_operations())
_OPERATIONS: dict[str, Any] = {found.ok().label: found.ok() for found in _FOUND}


# Not by `schema.parametrize()`: its tests have one name, and of one name pytest-xdist runs one.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _OPERATIONS)
def test_every_answer_is_in_its_schema(name: str) -> None:
    """Whatever is sent, no route answers 500 or with something that its schema does not hold."""

    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=_OPERATIONS[name].as_strategy())
    def answers(case: schemathesis.Case[Any]) -> None:
        for headers in (OWNER, {"Authorization": f"Bearer {READ_KEY}"}, {}):
            case.call_and_validate(headers=headers, checks=_CHECKS)

    answers()


def test_every_route_is_described() -> None:
    """Each operation says what it does, and which permission it needs where it needs one."""
    paths = client_with().get("/openapi.json").json()["paths"]
    operations = [(path, operation) for path, all_ in paths.items() for operation in all_.values()]
    assert len(operations) >= 15
    for path, operation in operations:
        text = operation["description"]
        assert text.endswith(".")
        assert bool(operation.get("security")) == bool(re.search("Needs the permission", text)), (
            path
        )
