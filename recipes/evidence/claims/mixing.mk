CLAIM := Pairs beat real images; the union of real and synthetic images, one after the other, and samples alone do not
PAPER := MixDiff, Figure 5: on ImageNet-100, training on both in turn or mixed is worse than on real images, and pairs are better
RULE := pairs beats union with five labels a class
ARMS := real pairs mixed union sequence synthetic real.samples untrained supervised
COMPARE := pairs>union:probe@5 pairs>sequence:probe@5 pairs>synthetic:probe@5 union>real:probe@5 sequence>real:probe@5 synthetic>real:probe@5
include $(dir $(lastword $(MAKEFILE_LIST)))../steps.mk
