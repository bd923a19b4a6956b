"""The command line: `llama-orch`, for people at a terminal and for scripts (OC-CLI-8001)."""
