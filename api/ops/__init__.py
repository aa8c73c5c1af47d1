"""What those who run the service work with: its processes, logs and metrics, health, and the inventory of data."""
