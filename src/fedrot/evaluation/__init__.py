"""Evaluators of generative models, and `fedrot eval`."""
