"""Inference Endpoints that a test run needs: resumed once, paused however the run ends."""
