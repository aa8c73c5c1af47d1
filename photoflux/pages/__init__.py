"""The HTML pages, one module per step: made from documents and pictures alone, so that nothing that is measured hangs on them."""
