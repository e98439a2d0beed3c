"""Other places that show what metrics.jsonl holds: a CSV file, Weights & Biases, MLflow."""
