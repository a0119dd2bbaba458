"""schemathesis tests the API against its own description: all responses must be as described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from app.serving import EDIT, Running
from autodrag.app import exports
from autodrag.app.config import AppConfig
from autodrag.app.server import create_app

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


def operations() -> dict[str, Any]:
    """Every operation of the API by its name; nothing is loaded for it."""
    _, api, _ = create_app(AppConfig(checkpoints=Path("nowhere")))
    schema = schemathesis.openapi.from_dict(api.openapi())
    found = (result.ok() for result in schema.get_all_operations())
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


OPERATIONS = operations()


@pytest.fixture(scope="module", autouse=True)
def short_films() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "PER_EDIT", 2)
        patch.setattr(exports, "REST", 1)
        yield


# The server's threads draw from Python's random while hypothesis watches it.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_as_described(name: str, shared: Running) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]

    @given(case=OPERATIONS[name].as_strategy())
    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def attempt(case: Any) -> None:
        if len(str(case.path_parameters.get("key", ""))) % 4:  # a quarter of unknown keys is enough
            case.path_parameters["key"] = shared.open(seed=1).rpartition("/")[2]
        if isinstance(case.body, dict) and isinstance(case.body.get("parameters"), dict):
            case.body["parameters"]["steps"] = 2
        response = case.call(base_url=shared.address.rstrip("/"), timeout=60)
        case.validate_response(response, checks=wanted)

    attempt()


def test_the_description_carries_the_one_edit_schema(shared: Running) -> None:
    document = shared.http.get("/api/openapi.json").json()
    parts = document["components"]["schemas"]
    assert set(parts["edit-Edit"]["properties"]) >= {"drags", "anchors", "mask", "method", "parameters", "seed"}
    for path in ("drag", "refine"):
        body = document["paths"][f"/api/sessions/{{key}}/{path}"]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/edit-Edit"}
    assert shared.http.post(f"{shared.open(seed=1)}/drag", json=EDIT).status_code == 200
