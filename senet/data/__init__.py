"""Images, their order and their random changes."""
