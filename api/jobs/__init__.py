"""Durable work: the line that it waits in, the workers that do it, and the messages that tell of its end."""
