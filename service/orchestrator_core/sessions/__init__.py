"""What tasks of one client conversation share: time to live, turns, KV, budgets."""
