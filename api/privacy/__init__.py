"""Consents, complaints, exports, erasure and retention."""
