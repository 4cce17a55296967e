"The command line: a table of options, five short commands, and `main`."
