"""Small networks trained beside a model that stays as it is."""
