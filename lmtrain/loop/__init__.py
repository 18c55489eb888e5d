"""What the training loop watches: bad steps, requests to stop, time, evaluation."""
