"""What every request passes, whatever its route: connections, hosts, middleware, problems, paging, idempotency and rate limits."""
