"""Trainable modules from papers, made of the reducers and windows and of convolutions; they load the originals' weights."""
