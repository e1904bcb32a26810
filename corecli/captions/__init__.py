"""Captions of concepts: the plan of what is asked, the backends that answer, and the judgment of their answers."""
