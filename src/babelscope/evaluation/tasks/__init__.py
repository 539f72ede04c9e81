"""What is asked: four benchmarks and Tinybabel's four tasks, in ten languages, and how an answer is scored."""
