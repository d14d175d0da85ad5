"""Makes the demo's suite a root of its own: no project's settings reach into it."""
