"""The methods of `train-ssl`: each file of this folder is one method."""
