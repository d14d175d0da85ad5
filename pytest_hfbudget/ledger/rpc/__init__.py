"""The ledger over a socket: one server, one client, one codec."""
