"""The tap on InferenceClient: request, bound, hold, send, usage, settle."""
