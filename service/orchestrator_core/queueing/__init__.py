"""Waiting: EDF within a flow, weighted fair queueing between flows, bounds around both."""
