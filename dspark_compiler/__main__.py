"""``python -m dspark_compiler`` is ``dspark``."""

from dspark_compiler.cli import main

if __name__ == "__main__":
    main(prog_name="python -m dspark_compiler")
