"""Races: what ranking, training and sampling cost, ours and others', each system in its own process."""
