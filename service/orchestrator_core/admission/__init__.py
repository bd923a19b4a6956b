"""Before the queue: who may enter, and what the answer is when not."""
