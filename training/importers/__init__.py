"""Published weights: read from their own files into an engine package, and written back."""
