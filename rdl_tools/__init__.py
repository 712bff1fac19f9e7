"""The commands of `rdl`, on files and folders: around `rdl_core`, which works on frames and tensors.

Each module does what the command of its name does; `cli` makes the commands of `config`.
"""
