"""A page for people: what each pass did to a program."""
