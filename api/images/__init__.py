"""From a prompt to an image file: prompt rules, the engine and its client, moderation, rendering and content credentials."""
