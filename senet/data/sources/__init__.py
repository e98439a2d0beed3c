"""Where images come from: files, and data sets that are downloaded or come with a library."""
