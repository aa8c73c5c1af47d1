"""From a prompt to a file: what is drawn and what is not, the engine and whoever asks it, finishing and signing."""
