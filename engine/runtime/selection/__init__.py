"""Which runtime computes a model, in which precision and with which options.

``settings.py`` resolves what the user left open, ``choose.py`` chooses the runtime, ``timing.py`` times the candidates
on a CPU, ``calibration.py`` keeps the times, ``processor.py`` names the processor for which they hold, and
``libraries.py`` lists the libraries that run exported graphs.
"""
