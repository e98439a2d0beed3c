"""Ranks: devices, rendezvous, collectives, signals, and what happens when one fails."""
