"""Workers: who is there, who gets which task, and what becomes of a task whose worker is lost."""

from .service import Workers

__all__ = ["Workers"]
