"""The layers `DCNv3` and `DCNv4`, with the arguments and parameter names of their releases."""
