"""FLUX.1: base specs and loading, prompt encoding, sampling, and LoRA fine-tuning."""
