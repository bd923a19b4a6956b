"""The orchestrator daemon: api > services > ports, composed in `app`."""
