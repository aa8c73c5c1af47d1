"""The KFP wrappers: one file per step, and nothing a step does."""
