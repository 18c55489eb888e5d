"""Finds out whether runs are comparable: what their losses measure, their schedules, budgets, and who has a value."""
