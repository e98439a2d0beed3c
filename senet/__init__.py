"""SENet18 trained by DistributedDataParallel. Importing this package imports nothing heavy."""
