"""The demo: a pretrained model reads a real file with a short window and an exact memory, beside full attention.

`mnemex demo` runs it; `mnemex.demo.run.run` is the same from Python.
"""
