"""Webhooks: deliveries to receivers that nobody trusts."""

from .attempt import Attempt, Sender, open_sender
from .dial import Dialer

__all__ = ["Attempt", "Dialer", "Sender", "open_sender"]
