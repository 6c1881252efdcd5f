"""The HTTP server: the videos API, durable jobs, metrics and the web page, on top of ``Engine.submit``.

The libraries of the extra ``serve`` are imported when this package is; :func:`syncflow.engine.serving.app.create_app`
makes the application of an engine, :func:`syncflow.engine.serving.server.serve` runs it.
"""
