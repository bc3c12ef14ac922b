"""Running exported models: ``infer.py`` travels with every export, ``network.py`` makes a model of one."""
