"""The drill: a user's own training, killed and resumed, must end with the bits of one that nothing disturbed."""
