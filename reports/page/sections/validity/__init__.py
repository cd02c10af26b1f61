"""What scorers and engines are held against: one another, labels by hand, transformers."""
