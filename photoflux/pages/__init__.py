"""The HTML reports, one module per step, made from documents and images alone: no measurement depends on them."""
