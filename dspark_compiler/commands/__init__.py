"""The subcommands, one module each. A module imports what it needs inside its handler, so that --help stays instant."""
