"""The workshop's checks by subject: what a right answer is, and what each common mistake has forgotten."""
