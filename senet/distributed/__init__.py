"""Ranks: where they are, how they meet, what they tell each other, how they stop."""
