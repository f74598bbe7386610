"""Plain data every layer may use: errors, data types, targets, layouts, artifacts, digests. Imports nothing of ours."""
