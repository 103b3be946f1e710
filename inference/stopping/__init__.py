"""Stopping: signals of a run, an algebra of rules over them, and an engine that asks them.

rule = (BetaMajority(0.95) | Budget(tokens=20_000)) & Threshold("draws", at_least=4)
infer(program, engine=Sequential(Forward(4), rule))
"""
