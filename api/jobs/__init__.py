"""Durable jobs: their queue, the workers that carry them out, and the webhooks that report their end."""
