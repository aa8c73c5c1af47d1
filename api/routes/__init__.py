"""Routes translate between HTTP and the service; rules live elsewhere."""
