"""Metering of paid calls, whichever client makes them: request, bound, hold, send, settle."""
