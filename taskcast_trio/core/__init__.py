"""The pure core: wire shapes, the state machine, filters, series and the rules later rooms act on.

Nothing here does I/O, knows Trio or reads a clock.
"""
