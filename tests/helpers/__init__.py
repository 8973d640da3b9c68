"""Shared by the tests: small parts and objectives, exact answers, and assertions.

- `catalogue`: tables of small priors, likelihoods, guides and objectives. What is
  listed there is tried on every law of `probssl.testing` (test_testing.py); objectives
  also by the tests of training, precision, compilation and processes.
- `linear`: linear-Gaussian joints, whose posterior and evidence are known.
- `crossings`: counts the calls between files of the package in a step.
- `checks`: assertions (means of samples, gradients) and tables of refused arguments.
"""
