"""The generation engine: one process owns one device and draws for many owners, each with adapters of their own."""
