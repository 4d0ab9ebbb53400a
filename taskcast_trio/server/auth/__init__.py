"""Authentication: who calls, and how a server finds out."""
