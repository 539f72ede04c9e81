"""Train only chosen neurons."""
