"""`bdd-runner`: the project's features, played against a service that somebody runs.

Off every request's path: it is a client like others, with one key. `main` is the command line,
`player` lets pytest-bdd play the scenarios with `bdd.live_service` as their stage, `report` says
what came of it. Invariant: every selected scenario is passed, failed or counted as one that needs
its own service; nothing is left out silently.
"""
