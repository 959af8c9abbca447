"""The intermediate form: operators, programs, and the tools every pass shares."""
