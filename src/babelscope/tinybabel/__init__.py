"""Tinybabel: a small multilingual world, written for this project, and a language model really trained on it.

`grammar` says things in ten languages, `world` knows what is true, `texts` writes about it, `tasks` asks about it in
the layouts of four benchmarks, and `recipe` makes the model that is shipped in `MODEL`.
"""

from pathlib import Path

NAME = "tinybabel"
"""What `load_model` and corpus specs call it."""
MODEL = Path(__file__).parent / "model"
"""The folder of the trained model."""
