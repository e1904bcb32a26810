"""Captions of concepts: the plan of what is asked, the backends that answer, and the judgement of their answers."""
