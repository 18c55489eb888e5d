"""How several processes start one run, and what all but the first of them do."""
