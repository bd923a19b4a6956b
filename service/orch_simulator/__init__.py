"""Simulated time around the real scheduling core: what a fleet would do, before it is bought.

Off every request's path. `Simulation` drives `orchestrator_core.Scheduler` with arrivals (generated
or recorded) and a model of the engines; nothing of the core is copied or replaced.
"""
