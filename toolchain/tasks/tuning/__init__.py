"""`tc tune` on this machine: candidates built and timed in processes of their own, winners confirmed, records kept."""
