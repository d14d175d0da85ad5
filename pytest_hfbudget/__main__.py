"""`python -m pytest_hfbudget` is `hfbudget`."""

from __future__ import annotations

from pytest_hfbudget.cli import main

if __name__ == "__main__":
    main(prog_name="hfbudget")
