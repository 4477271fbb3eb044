"""What the `hooke` command can do: a file a command. Thin, and without torch until a command is called."""
