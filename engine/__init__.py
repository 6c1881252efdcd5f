"""The engine: configuration, the values that travel, model, sampling, codecs, media; ``Engine`` joins them."""
