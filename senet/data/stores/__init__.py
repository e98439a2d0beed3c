"""Images as they are kept below data.root."""
