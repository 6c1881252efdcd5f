"""The engine: configuration, the values that travel, model, sampling, codecs, media and the ``Engine`` that joins them."""
