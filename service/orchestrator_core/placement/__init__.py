"""From free slots to one replica: filter, score, pick."""
