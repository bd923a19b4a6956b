"""Every state transition of a task: admission, dispatch, failover, termination, recovery."""
