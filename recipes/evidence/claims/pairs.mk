CLAIM := Views of an image and of its synthetic variants teach more than views of real images only
PAPER := MixDiff, Table 1: SimCLR 63.3 -> 67.9 on ImageNet; GenSSL: up to +10 points
RULE := pairs beats real with five labels a class
ARMS := real pairs mixed real.samples untrained supervised
COMPARE := pairs>real:probe@5 mixed>real:probe@5 pairs>real:knn5@5 pairs>real:probe@1 pairs>real:probe@20 pairs>real:probe
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk
