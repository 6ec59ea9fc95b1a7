"""The subcommands of ``prh-eval``, a file each: arguments in, text out; heavy imports inside."""
