"""The tests of wan2gp."""
