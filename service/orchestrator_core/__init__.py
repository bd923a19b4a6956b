"""The pure scheduling core: decisions as values, no clock, no I/O, no randomness.

Time and ids come in as arguments (`now_ms` is wall-clock milliseconds since the epoch, so that
deadlines hold across a restart); effects go out as values. See `scheduler.Scheduler.step`.
"""
