"""What is said of answers and of scores, by training and by evaluation alike."""
