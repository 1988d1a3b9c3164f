"""Delivers messages: claims those that are due, and attempts each in a thread of its own.

The attempts that are under way at once are limited, and each has a deadline, so that slow receivers neither hold up
the others nor pile up. An attempt that the process does not live to record is made again by the next claim, under the
same id.
"""

import logging
import time
from datetime import datetime, timedelta
from threading import Lock, Thread, current_thread

from sqlalchemy.exc import SQLAlchemyError

from service.notifications import mail
from service.notifications.connection import Resolve, resolve
from service.notifications.webhooks import Sender
from service.notifications.wording import body, text, title
from service.settings import Settings
from service.store.notifications.attempts import Attempted
from service.store.notifications.outbox import Outbox, Owed, webhook_id

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Attempts under way at once, in one process."""
LEASE = timedelta(minutes=5)
"""How long a claimed message is left to whoever claimed it: longer than an attempt takes, every answer of a slow mail
server included."""


class Deliverer:
    """Attempts messages of an outbox in threads."""

    def __init__(self, settings: Settings, outbox: Outbox, *, resolve: Resolve = resolve) -> None:
        """Take what is needed to send. Raises InvalidRequest for a mail server's address that is none."""
        self._outbox = outbox
        self._webhooks = Sender(settings.webhook_networks, resolve=resolve)
        smtp_url = settings.smtp_url
        self._mail_server = None if smtp_url is None else mail.mail_server(smtp_url.get_secret_value())
        self._mail_from = settings.mail_from
        self._lock = Lock()
        self._threads: set[Thread] = set()

    def step(self) -> int:
        """Begin the attempts that are due and for which there is room; return their number."""
        with self._lock:
            room = AT_ONCE - len(self._threads)
        if room == 0:
            return 0
        owed = self._outbox.claim(room, LEASE)
        for one in owed:
            thread = Thread(target=self._deliver, args=(one,), name=f"delivery {one.id}", daemon=True)
            with self._lock:
                self._threads.add(thread)
            thread.start()
        return len(owed)

    def wait(self, seconds: float) -> None:
        """Wait for the attempts that are under way, for `seconds` at most."""
        deadline = time.monotonic() + seconds
        with self._lock:
            threads = tuple(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _deliver(self, owed: Owed) -> None:
        began = self._outbox.now()
        try:
            attempted = self._attempt(owed, began)
        except Exception as error:  # the message is tried again, like any other that failed
            log.exception("message %s could not be attempted", owed.id)
            attempted = Attempted("failed", f"The service failed: {type(error).__name__}.")
        try:
            self._outbox.record(owed, attempted, began)
        except SQLAlchemyError as error:
            log.error("message %s: %s This was not recorded, so it is sent again: %s", owed.id, attempted.detail, error)
        finally:
            with self._lock:
                self._threads.discard(current_thread())

    def _attempt(self, owed: Owed, at: datetime) -> Attempted:
        announcement, address = owed.announcement, owed.receiver.address
        message_id = webhook_id(owed.id)
        if owed.receiver.channel == "webhook":
            return self._webhooks.send(address, message_id, body(announcement), owed.secrets, at)
        if self._mail_server is None or self._mail_from is None:
            return Attempted("failed", "The service has no HEADROOM_SMTP_URL and HEADROOM_MAIL_FROM.")
        subject = f"Headroom: {title(announcement)}"
        written = mail.Mail(message_id, address, subject, text(announcement), announcement.at)
        return mail.send(self._mail_server, self._mail_from, written)
