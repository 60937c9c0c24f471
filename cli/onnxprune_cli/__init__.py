"""The command line: it reads what was asked, calls the library, shows what came of it. One command per file."""
