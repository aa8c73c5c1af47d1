"""The pocket world and the small base and judges that are trained on it."""
