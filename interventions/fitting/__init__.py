"""Statistics of activations: which rows stand against which, linear classifiers, covariances. Imports data."""
