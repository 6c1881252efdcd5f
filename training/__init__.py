"""Training: data, objectives, stages and evaluation."""
