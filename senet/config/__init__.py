"""Options: declared, read, checked, explained."""
