"""Decides whether a challenger is better than a baseline, and keeps the ledger of a campaign of such decisions."""
