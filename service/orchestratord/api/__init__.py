"""The edge: HTTP in, domain out, and back. Wire models stop here."""
