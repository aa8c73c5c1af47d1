"""Photos: decoded safely, measured, judged, normalised, varied and captioned."""
