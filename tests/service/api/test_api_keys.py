"""Keys over HTTP: made, listed and revoked by administrators; and what each scope may be used for."""

import pytest
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError

from service.api.keys.checking import OPEN_FOLDERS, OPEN_PATHS


def routes(app):
    """Every method and path of the app that needs a key, from its own table of routes."""
    for route in app.routes:
        if hasattr(route, "original_router"):  # FastAPI keeps included routers as they are
            yield from routes(route.original_router)
            continue
        assert isinstance(route, APIRoute), route
        if route.path not in OPEN_PATHS and not route.path.startswith(OPEN_FOLDERS):
            for method in route.methods:
                yield method, route.path


def as_holder(world, *scopes):
    """Headers of a new key of these scopes."""
    _, plain = world.stores.keys.create("-".join(("holder", *scopes)), scopes)
    return {"Authorization": f"Bearer {plain}"}


def test_a_key_is_made_shown_once_used_and_revoked(client, stranger, problem):
    made = client.post("/v1/keys", json={"name": "ann", "scopes": ["read"], "expires_at": "2999-01-01T00:00:00Z"})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    key = made.json()
    assert (key["name"], key["owner"], key["scopes"], key["last_used_at"]) == ("ann", "ann", ["read"], None)
    mine = {"X-API-Key": key["key"]}
    assert stranger.get("/v1/jobs", headers=mine).status_code == 200
    (listed,) = client.get("/v1/keys").json()["keys"]
    assert listed["last_used_at"] is not None
    assert listed == {name: value for name, value in key.items() if name != "key"} | {
        "last_used_at": listed["last_used_at"]
    }
    assert client.delete("/v1/keys/ann").json()["revoked_at"] is not None
    problem(stranger.get("/v1/jobs", headers=mine), 401, "unauthorized")
    problem(client.delete("/v1/keys/ann"), 404, "not-found")


@pytest.mark.parametrize(
    "body",
    [{"name": "ann"}, {"name": "a b", "scopes": ["read"]}, {"name": "ann", "scopes": []},
     {"name": "ann", "scopes": ["all"]}, {"name": "ann", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"},
     {"name": "ann", "scopes": ["read"], "owner": ""}],
)  # fmt: skip
def test_a_key_that_cannot_be_is_refused(client, problem, body):
    problem(client.post("/v1/keys", json=body), 422, "invalid-request")
    assert client.get("/v1/keys").json() == {"keys": []}


def test_every_route_asks_for_its_scope(world, stranger, problem):
    """Whatever the table of routes has: reading, changing, and keys and secrets."""
    holders = {scope: as_holder(world, scope) for scope in ("read", "submit", "admin")}
    asked = dict.fromkeys(routes(world.app))
    assert len(asked) > 40
    for method, path in asked:
        needed = {"read" if method in ("GET", "HEAD") else "submit"}
        if path.startswith("/v1/keys"):
            needed = {"admin"}
        elif path.endswith("/secret"):  # who has it can sign messages
            needed = {"read", "submit"}
        filled = path.replace("{", "").replace("}", "")
        for scope, headers in holders.items():
            answer = stranger.request(method, filled, headers=headers)
            if scope == "admin" or needed == {scope}:
                assert answer.status_code not in (401, 403), (method, path, scope)
            elif method == "HEAD":
                assert answer.status_code == 403, (path, scope)
            else:
                detail = problem(answer, 403, "scope-missing")["detail"]
                assert any(f"needs {one}" in detail for one in needed - {scope}), (method, path, scope, detail)


def test_a_database_that_is_away_is_said_at_the_check_of_the_key(world, client, problem, monkeypatch):
    def fail(_plain):
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(world.stores.keys, "verify", fail)
    answer = client.get("/v1/jobs")
    problem(answer, 503, "database-unavailable")
    assert int(answer.headers["retry-after"]) > 0
