"""Allocation: one budget over questions, models and steps."""
