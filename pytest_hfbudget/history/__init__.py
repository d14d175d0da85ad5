"""What outlasts a run: the usage log, and what the runs of a project may spend together.

Nothing here is imported by a run without paid calls: sqlite3 takes its time.
"""
