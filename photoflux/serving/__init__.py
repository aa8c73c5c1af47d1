"""The generation engine: one process owns one device and draws for many people, each with their own adapter."""
