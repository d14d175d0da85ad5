"""Metering of InferenceClient calls: request, bound, hold, send, usage, settle."""
