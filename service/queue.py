"""The queue: names, the Celery configuration, and sending by name.

The database records the jobs; a message only has a job's id and a dispatch number, and wakes a worker. So messages are
acknowledged before the job runs, no results are kept, and lost messages lose no job.

Broker URLs: `redis://`, `rediss://` (the server's certificate is checked), and
`redis+socket://:PASSWORD@/path/of.sock?virtual_host=0` for a Unix socket.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service.contracts.request import SIZE_CLASSES, SizeClass
from service.errors import InvalidRequest, ServiceUnreachable
from service.settings import Settings

if TYPE_CHECKING:  # it takes long to load, and is only needed where there is a broker
    from celery import Celery

TASK = "headroom.run_job"
"""Name of the one task; its arguments are a job's id and a dispatch number."""
QUEUE = "headroom"
"""Name of the queue of small jobs."""
SCHEMES = ("redis", "rediss", "redis+socket")

WORKER_ARGUMENTS = ("worker", "--without-gossip", "--without-mingle", "--without-heartbeat")
"""Command line of a worker: these three have no configuration setting."""


def celery_config(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration. Raises InvalidRequest for a broker URL that is missing or of another kind."""
    url = _broker_url(settings)
    config: dict[str, Any] = {
        "broker_url": url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a worker waits for its broker for as long as it takes
        "broker_transport_options": {
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        "task_default_queue": QUEUE,
        "task_acks_late": False,
        "task_ignore_result": True,
        "result_backend": None,
        "accept_content": ["json"],
        "task_serializer": "json",
        "worker_pool": "solo",
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,  # a waiting message stays where an idle worker can take it
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_redirect_stdouts": False,
    }
    if url.startswith("rediss:"):  # kombu by itself would accept any certificate
        config["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return config


def make_app(settings: Settings) -> "Celery":
    """Return a Celery application for sending, or for a worker to add its task to."""
    from celery import Celery

    app = Celery("headroom", set_as_current=False)
    app.config_from_object(celery_config(settings))
    return app


def queue_name(size: SizeClass) -> str:
    """Return the name of the queue whose messages wake the workers for a class of jobs."""
    return QUEUE if size == "small" else f"{QUEUE}.{size}"


def send(app: "Celery", job_id: str, dispatch: int, size: SizeClass = "small") -> None:
    """Send the message of one dispatch. Raises ServiceUnreachable when the broker is away or refuses."""
    with _reporting(app):
        # One retry, at once: the pooled connection may be from before the broker was restarted.
        policy = {"max_retries": 1, "interval_start": 0}
        app.send_task(TASK, args=[job_id, dispatch], queue=queue_name(size), retry=True, retry_policy=policy)


def waiting(app: "Celery") -> dict[SizeClass, int]:
    """Return how many messages no worker has taken, by the class of their jobs.

    Raises ServiceUnreachable when the broker is away or refuses.
    """
    with app.connection_for_write() as connection, _reporting(app):
        connection.ensure_connection(max_retries=1, interval_start=0)
        channel = connection.default_channel
        queues = {size: app.amqp.queues[queue_name(size)](channel) for size in SIZE_CLASSES}
        return {size: int(queue.queue_declare(passive=False).message_count) for size, queue in queues.items()}


@contextmanager
def _reporting(app: "Celery") -> Iterator[None]:
    """Turn what a broker's client raises into ServiceUnreachable."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    try:
        yield
    except (OperationalError, RedisError, OSError) as error:
        where = f"HEADROOM_BROKER_URL: the broker at {public_url(app.conf.broker_url)}"
        raise ServiceUnreachable(f"{where} cannot be reached: {error}") from error


def public_url(url: str) -> str:
    """Return a broker URL without its password."""
    from kombu.utils.url import sanitize_url

    return str(sanitize_url(url))


def _broker_url(settings: Settings) -> str:
    url = settings.broker_url.get_secret_value() if settings.broker_url else None
    scheme, separator, _ = url.partition("://") if url else ("", "", "")
    allowed = "redis://host:port/0, rediss://host:port/0 or redis+socket:///path?virtual_host=0"
    if url is None or not separator or scheme not in SCHEMES:
        raise InvalidRequest("HEADROOM_BROKER_URL", public_url(url) if url else None, allowed)
    try:
        urlsplit(url).port  # noqa: B018 - reading it checks it
    except ValueError:  # where the password ends in such a URL cannot be told, so none of it is shown
        shown = f"{scheme}://..."
        raise InvalidRequest("HEADROOM_BROKER_URL", shown, allowed, problem="has a malformed host or port") from None
    return url
