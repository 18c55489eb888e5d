"""Offers lmtrain's commands to a coding agent by the Model Context Protocol."""
