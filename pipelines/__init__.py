"""The pipeline: its graph, its compiled file, and what can run it."""
