"""Finds out whether the values of runs are comparable: their schedules, budgets, machines, and who has a value."""
