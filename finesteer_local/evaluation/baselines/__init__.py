"""The methods that ours is measured beside, each from its own paper or program, one file a method.

Every module offers `candidates(material)`: what its authors leave open, as settings among which validation chooses.
"""
