"""Webhooks: deliveries to receivers that nobody trusts."""

from .attempt import Attempt, Sender, open_sender
from .dial import Dialer
from .lanes import Lanes
from .service import Look, Webhooks

__all__ = ["Attempt", "Dialer", "Lanes", "Look", "Sender", "Webhooks", "open_sender"]
