"""Routes between formats: the best class a conversion can have, decided by the actual values."""
