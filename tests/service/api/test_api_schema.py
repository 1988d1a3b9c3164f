"""The API against its own description: made-up calls of every operation, many of them on jobs that exist.

No call makes a server error, and every answer is one that the description has.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.store.database import writer
from service.store.tables import Base

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SUBMISSIONS = {("POST", "/v1/jobs"): {"model": "sample"}}
"""Bodies of calls that make what others need."""
BOUNDED = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def job_ids(world, report_id):
    """The ids of jobs in every status, one of them with a report."""
    queued, running, cancelled = (world.submit().id for _ in range(3))
    world.claim(world.store.get(running))
    world.store.cancel(cancelled)
    return [queued, running, cancelled, report_id]


@pytest.mark.filterwarnings("default")
def test_every_operation_answers_as_described(world, client, job_ids):
    headers = {"Authorization": client.headers["Authorization"]}
    schema = schemathesis.openapi.from_asgi("/openapi.json", world.app, headers=headers)
    operations = [result.ok() for result in schema.get_all_operations()]
    succeeded = set()

    def check(operation):
        @BOUNDED
        @given(case=operation.as_strategy(), job_id=st.sampled_from(job_ids), is_made_up=st.booleans())
        def call(case, job_id, is_made_up):
            if not is_made_up and "job_id" in case.path_parameters:
                case.path_parameters["job_id"] = job_id
            if not is_made_up and (case.method, case.path) == ("POST", "/v1/jobs"):
                case.body, case.query = {"model": "sample"}, {}
            response = case.call(headers=headers)
            case.validate_response(response, checks=CHECKS)
            if response.status_code < 300:
                succeeded.add((case.method, case.path))

        call()

    for operation in sorted(operations, key=lambda one: one.method.upper() == "DELETE"):  # last
        check(operation)
    assert len(operations) > 40
    assert len(succeeded) >= 12, succeeded


@pytest.mark.filterwarnings("default")
def test_chains_of_calls_answer_as_described(world, client):
    """Calls with what earlier calls answered, such as the id of a job that was submitted."""
    headers = {"Authorization": client.headers["Authorization"]}
    schema = schemathesis.openapi.from_asgi("/openapi.json", world.app, headers=headers)
    chained = {}

    class Calls(schema.as_state_machine()):
        def setup(self):
            """Forget the chain before: the same calls must have the same answers."""
            with writer(world.store._reader).begin() as connection:
                for table in reversed(Base.metadata.sorted_tables):
                    connection.execute(table.delete())

        def before_call(self, case):
            if (case.method, case.path) in SUBMISSIONS:
                case.body, case.query = SUBMISSIONS[case.method, case.path] | {"sequences": 3}, {}

        def get_call_kwargs(self, case):  # noqa: ARG002
            return {"headers": headers}

        def validate_response(self, response, case, **_):
            case.validate_response(response, checks=CHECKS)

        def step(self, input):
            output = super().step(input)
            if input.transition is not None and input.is_applied:
                chained.setdefault((input.case.method, input.case.path), set()).add(output.response.status_code)
            return output

    Calls.run(settings=settings(BOUNDED, max_examples=12, stateful_step_count=14))
    assert len(chained) >= 5, chained
    assert any(min(statuses) < 300 for statuses in chained.values()), chained
