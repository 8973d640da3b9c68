"""What several test files share: small objectives and data, exact guides, checks."""
