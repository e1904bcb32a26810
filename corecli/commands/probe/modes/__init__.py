"""The modes of `probe`: one file is one way to train on labels, and its name is the mode's name.

A mode declares, as literals that are read without importing it:

- its title: the first line of its docstring;
- NEEDS: "features" (computed once; feature tables work), "views" (augmented images on a frozen encoder; features with
  augment=none), "images" (every set has images, and the encoder trains too) or "masks" (images with masks);
- NUM_SEEDS: repetitions by default (at least 3 where each seed draws a part of the training set);
- USES_VAL: whether it chooses a setting, on --val or on a hold-out; such a mode has the option `holdout`;
- MULTI_LABEL = True if it can train on images with several classes (--labels);
- `class Options`, a dataclass with its options and their defaults. An option that is also one of the command line is
  given there, others with --set. A mode with the options `k` and `knn_temperature` also scores a k-NN vote.

And it has one function, which trains for one seed:

- `fit(context, split, *, options, seed) -> Fitted` (`context.py`), on the main process alone for features, on all
  processes for views and images;
- for masks: `fit(context, *, options, seed) -> Predict` (`segmentation.py`), on all processes.
"""
